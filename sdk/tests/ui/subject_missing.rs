use pelton_sdk::prelude::*;

#[handler]
fn paid(_event: Event<()>, _ctx: &mut Context) -> Result {
    Ok(())
}
handlers![paid];

fn main() {}
