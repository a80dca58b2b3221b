use pelton_sdk::prelude::*;

fn gives_up() -> Result {
    reject!("Not A Code", "no");
}

fn waits() -> Result {
    defer!("pelton-mine");
}

fn node_errors_are_passed_on(ctx: &Context) -> Result {
    ctx.config("x").or_defer("later")?;
    Ok(())
}

fn main() {}
