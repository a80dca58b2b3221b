//! `handlers!`: dispatch by subject, the component's export, and the lines that announce the subjects.

use std::collections::HashSet;

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Error, Path, Token};

/// Paths of handlers.
pub(crate) struct List(Vec<Path>);

impl Parse for List {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let paths = Punctuated::<Path, Token![,]>::parse_terminated(input)?;
        if paths.is_empty() {
            let text = "a function has at least one handler: handlers![created, paid]";
            return Err(input.error(text));
        }
        let mut seen = HashSet::new();
        for path in &paths {
            if !seen.insert(name(path)) {
                let text = format!("the handler `{}` is listed twice", name(path));
                return Err(Error::new(path.span(), text));
            }
        }
        Ok(Self(paths.into_iter().collect()))
    }
}

/// What the handler is called in logs and listings.
fn name(path: &Path) -> String {
    let last = path.segments.last();
    last.map(|segment| {
        segment
            .ident
            .to_string()
            .trim_start_matches("r#")
            .to_owned()
    })
    .unwrap_or_default()
}

pub(crate) fn expand(List(paths): &List) -> TokenStream {
    let names: Vec<String> = paths.iter().map(name).collect();
    let subjects: Vec<TokenStream> = paths.iter().map(subject).collect();
    let calls = paths.iter().zip(&subjects).zip(&names);
    let calls = calls.map(|((path, subject), name)| {
        quote_spanned! {path.span()=>
            if ::pelton_sdk::__private::overlaps(#subject, &event.subject) {
                let handler = (#name, <#path as ::pelton_sdk::__private::Announced>::PLACE);
                return ::pelton_sdk::__private::call(handler, #path, event, ctx);
            }
        }
    });
    let overlaps = overlaps(&names, paths, &subjects);
    let lines = names.iter().zip(&subjects).map(|(name, subject)| {
        quote! {
            const _: () = {
                const LEN: usize = ::pelton_sdk::__private::line_len(#name, #subject);
                #[used]
                #[unsafe(link_section = "pelton:handlers")]
                static LINE: [u8; LEN] = ::pelton_sdk::__private::line(#name, #subject);
            };
        }
    });
    quote! {
        /// The handlers of this function.
        #[derive(Debug, Clone, Copy)]
        pub struct Handlers;

        impl ::pelton_sdk::Function for Handlers {
            const HANDLERS: &'static [(&'static str, &'static str)] = &[#((#names, #subjects)),*];

            fn handle(
                event: ::pelton_sdk::Event<::pelton_sdk::Raw>,
                ctx: &mut ::pelton_sdk::Context,
            ) -> ::pelton_sdk::Result {
                #(#calls)*
                ::pelton_sdk::__private::unhandled(&event.subject)
            }
        }

        #(#overlaps)*

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            #(#lines)*
            ::pelton_sdk::__private::bindings::__export_function!(
                Handlers with_types_in ::pelton_sdk::__private::bindings
            );
        };
    }
}

fn subject(path: &Path) -> TokenStream {
    quote_spanned! {path.span()=> <#path as ::pelton_sdk::__private::Announced>::SUBJECT }
}

/// One check for each two handlers: an event that both take would have no one right handler.
fn overlaps(names: &[String], paths: &[Path], subjects: &[TokenStream]) -> Vec<TokenStream> {
    let mut checks = Vec::new();
    for (later, path) in paths.iter().enumerate() {
        for earlier in 0..later {
            let (Some(left), Some(right)) = (subjects.get(earlier), subjects.get(later)) else {
                continue;
            };
            let (first, second) = (names.get(earlier), names.get(later));
            let text = format!(
                "an event may match both `{}` and `{}`: make their patterns disjoint",
                first.map_or("", String::as_str),
                second.map_or("", String::as_str)
            );
            checks.push(quote_spanned! {path.span()=>
                const _: () = ::core::assert!(!::pelton_sdk::__private::overlaps(#left, #right), #text);
            });
        }
    }
    checks
}
