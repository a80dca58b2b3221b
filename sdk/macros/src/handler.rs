//! `#[handler]`: the function as it was, a type of the same name that knows its subjects, and checks of its signature.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, FnArg, ItemFn, LitStr, ReturnType, Type};

pub(crate) fn expand(pattern: TokenStream, item: &ItemFn) -> TokenStream {
    let announced = announced(pattern, item).unwrap_or_else(|error| error.to_compile_error());
    quote! { #item #announced }
}

fn announced(pattern: TokenStream, item: &ItemFn) -> syn::Result<TokenStream> {
    let pattern = subject(pattern)?;
    let checks = signature(item)?;
    let (name, vis) = (&item.sig.ident, &item.vis);
    let place = quote_spanned! {name.span()=>
        ::core::concat!(::core::file!(), ":", ::core::line!())
    };
    Ok(quote! {
        #[doc(hidden)]
        #[allow(non_camel_case_types, dead_code)]
        #vis struct #name {}

        impl ::pelton_sdk::__private::Announced for #name {
            const SUBJECT: &'static str = #pattern;
            const PLACE: &'static str = #place;
        }

        #checks
    })
}

/// The pattern in the parentheses.
fn subject(tokens: TokenStream) -> syn::Result<LitStr> {
    if tokens.is_empty() {
        let text = "which subjects? Write #[handler(\"orders.*.paid\")]";
        return Err(Error::new(proc_macro2::Span::call_site(), text));
    }
    let pattern: LitStr = syn::parse2(tokens).map_err(|error| {
        let text = "a subject pattern is one string, such as \"orders.*.paid\"";
        Error::new(error.span(), text)
    })?;
    match pattern_error(&pattern.value()) {
        Some(text) => Err(Error::new(pattern.span(), text)),
        None => Ok(pattern),
    }
}

/// Why this is no pattern, if so.
fn pattern_error(pattern: &str) -> Option<String> {
    let mut tokens = pattern.split('.').peekable();
    while let Some(token) = tokens.next() {
        let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\\');
        let text = if token.is_empty() {
            "a token between two dots is empty".to_owned()
        } else if let Some(c) = token.chars().find(|c| odd(*c)) {
            format!("{c:?} cannot be in a subject")
        } else if token == ">" && tokens.peek().is_some() {
            "`>` stands for the rest and must be last".to_owned()
        } else if token.len() > 1 && token.contains(['*', '>']) {
            format!("a wildcard is a token by itself, unlike in `{token}`")
        } else {
            continue;
        };
        return Some(format!("`{pattern}` is no subject pattern: {text}"));
    }
    None
}

const SHAPE: &str = "a handler is `fn name(event: Event<T>, ctx: &mut Context) -> Result`";

/// Refuses what is visibly wrong, and lets the compiler check the types where they stand.
fn signature(item: &ItemFn) -> syn::Result<TokenStream> {
    let signature = &item.sig;
    let wrong =
        |span: &dyn Spanned, why: &str| Err(Error::new(span.span(), format!("{why}: {SHAPE}")));
    if let Some(token) = &signature.asyncness {
        return wrong(token, "a handler runs to its end and cannot be async");
    }
    if let Some(token) = &signature.unsafety {
        return wrong(token, "a handler cannot be unsafe");
    }
    if !signature.generics.params.is_empty() {
        return wrong(&signature.generics, "a handler has no generic parameters");
    }
    let mut inputs = Vec::new();
    for input in &signature.inputs {
        match input {
            FnArg::Receiver(token) => return wrong(token, "a handler is no method"),
            FnArg::Typed(input) => inputs.push(&*input.ty),
        }
    }
    let &[event, ctx] = inputs.as_slice() else {
        return wrong(
            &signature.paren_token.span.join(),
            "a handler has two parameters",
        );
    };
    let ctx = match ctx {
        Type::Reference(reference) if reference.mutability.is_some() => &*reference.elem,
        other => return wrong(other, "the second parameter is `&mut Context`"),
    };
    let ReturnType::Type(_, result) = &signature.output else {
        return wrong(&signature.ident, "a handler returns `Result`");
    };
    let checks = [
        (quote! { assert_event }, event),
        (quote! { assert_context }, ctx),
        (quote! { assert_result }, &**result),
    ];
    Ok(checks
        .iter()
        .map(|(check, ty)| quote_spanned! { ty.span()=> const _: () = ::pelton_sdk::__private::#check::<#ty>(); })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for good in ["orders.*.paid", "orders.>", ">", "*", "a-b.c_d"] {
            assert_eq!(pattern_error(good), None);
        }
        for bad in ["", "a..b", "a.", "a b", "a.>.b", "a*.b", "a.\"b", "a.x>"] {
            assert!(pattern_error(bad).is_some(), "{bad:?}");
        }
    }
}
