use pelton_sdk::prelude::*;

#[handler("orders.>.paid")]
fn rest(_event: Event<()>, _ctx: &mut Context) -> Result {
    Ok(())
}

#[handler("orders..paid")]
fn empty(_event: Event<()>, _ctx: &mut Context) -> Result {
    Ok(())
}

#[handler("orders.o-*")]
fn half(_event: Event<()>, _ctx: &mut Context) -> Result {
    Ok(())
}

#[handler(orders)]
fn bare(_event: Event<()>, _ctx: &mut Context) -> Result {
    Ok(())
}

fn main() {}
