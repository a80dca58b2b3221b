use pelton_sdk::prelude::*;

struct Paid;

#[handler("orders.*.paid")]
fn paid(_event: Event<Paid>, _ctx: &mut Context) -> Result {
    Ok(())
}
handlers![paid];

fn main() {}
