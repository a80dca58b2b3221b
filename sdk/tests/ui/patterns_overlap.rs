use pelton_sdk::prelude::*;

#[handler("orders.*.paid")]
fn paid(_event: Event<()>, _ctx: &mut Context) -> Result {
    Ok(())
}

#[handler("orders.>")]
fn any(_event: Event<()>, _ctx: &mut Context) -> Result {
    Ok(())
}
handlers![paid, any];

fn main() {}
