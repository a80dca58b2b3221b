//! Creates, reads and deletes rows, each of which is one key.

use std::time::Duration;

use pelton_sdk::prelude::*;
use serde::Deserialize;

static ROWS: Table<u64> = Table::new("rows");

/// What is to be done with a row.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Act {
    /// Set it; with a TTL, it expires.
    Set {
        /// To this value.
        value: u64,
        /// After so many milliseconds.
        ttl_ms: Option<u64>,
    },
    /// Reply with it.
    Get,
    /// Delete it.
    Delete,
    /// Create it if there is none, else delete it.
    Toggle,
}

/// Does with the row of its key as it is told.
#[handler("rows.*")]
pub fn act(event: Event<Act>, ctx: &mut Context) -> Result {
    let row = ctx.delivery().key.clone().or_reject("no-key")?;
    match event.data {
        Act::Set {
            value,
            ttl_ms: Some(ttl),
        } => ROWS.set_with_ttl(ctx, &row, &value, Duration::from_millis(ttl)),
        Act::Set { value, .. } => ROWS.set(ctx, &row, &value),
        Act::Get => {
            let value = ROWS.get(ctx, &row)?;
            ctx.reply(&value)
        }
        Act::Delete => ROWS.delete(ctx, &row),
        Act::Toggle => match ROWS.get(ctx, &row)? {
            Some(_) => ROWS.delete(ctx, &row),
            None => ROWS.set(ctx, &row, &1),
        },
    }
}

handlers![act];
