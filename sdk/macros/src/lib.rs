//! The macros of `pelton-sdk`. They only glue: what they expand to calls plain functions of that crate, and every
//! mistake is reported at the user's own words.

mod handler;
mod handlers;

use proc_macro::TokenStream;
use syn::parse_macro_input;

/// Makes a function a handler of the subjects that match a pattern: `#[handler("orders.*.paid")]`.
///
/// The function is `fn(Event<T>, &mut Context) -> Result`, and stays callable as it is, which is how tests call it.
/// Patterns are those of NATS: `*` is one token, `>` at the end is the rest.
#[proc_macro_attribute]
pub fn handler(pattern: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as syn::ItemFn);
    handler::expand(pattern.into(), &item).into()
}

/// Lists a crate's handlers, once: `handlers![created, paid, shipped];`.
///
/// Expands to the type `Handlers` (see `pelton_sdk::Function`), which hands each event to the one handler that takes
/// its subject, and, in a component, to the export and the announcement of the subjects. Patterns must not overlap.
#[proc_macro]
pub fn handlers(list: TokenStream) -> TokenStream {
    let list = parse_macro_input!(list as handlers::List);
    handlers::expand(&list).into()
}
