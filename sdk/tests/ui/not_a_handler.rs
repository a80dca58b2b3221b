use pelton_sdk::prelude::*;

fn plain(_event: Event<()>, _ctx: &mut Context) -> Result {
    Ok(())
}
handlers![plain];

fn main() {}
