//! The smallest function with effects: one read, one write, one event.

use pelton_sdk::prelude::*;

/// Counts the events of a key, and tells each number.
#[handler("tally.*")]
pub fn count(_event: Event<Raw>, ctx: &mut Context) -> Result {
    static COUNTS: Table<u64> = Table::new("counts");
    let key = ctx.delivery().key.clone().or_reject("no-key")?;
    let next = COUNTS.get(ctx, &key)?.unwrap_or_default() + 1;
    COUNTS.set(ctx, &key, &next)?;
    ctx.emit(Draft::new(format!("counts.{key}"), &next))
}

handlers![count];
