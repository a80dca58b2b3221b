use pelton_sdk::prelude::*;

#[handler("a")]
async fn waits(_event: Event<()>, _ctx: &mut Context) -> Result {
    Ok(())
}

#[handler("b")]
fn lonely(_event: Event<()>) -> Result {
    Ok(())
}

#[handler("c")]
fn shared(_event: Event<()>, _ctx: &Context) -> Result {
    Ok(())
}

#[handler("d")]
fn silent(_event: Event<()>, _ctx: &mut Context) {}

#[handler("e")]
fn generic<T>(_event: Event<T>, _ctx: &mut Context) -> Result {
    Ok(())
}

fn main() {}
