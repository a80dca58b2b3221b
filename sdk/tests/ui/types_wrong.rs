use pelton_sdk::prelude::*;

#[handler("a")]
fn text(_event: String, _ctx: &mut Context) -> Result {
    Ok(())
}

#[handler("b")]
fn other(_event: Event<()>, _ctx: &mut String) -> Result {
    Ok(())
}

#[handler("c")]
fn counts(_event: Event<()>, _ctx: &mut Context) -> u32 {
    0
}

fn main() {}
