//! From a refusal's message to the line that `pelton.toml` lacks.
//!
//! The node ends such messages with `[functions.NAME.allow] emit = ["…"]` (or `http`). What the file has there
//! already must stay, so the line is completed before it is shown.

use pelton_runtime::config::Manifest;

/// The lines to have in `pelton.toml`, if the message asks for some.
pub(super) fn hint(message: &str, manifest: &Manifest) -> Option<String> {
    let (_, rest) = message.split_once("[functions.")?;
    let (function, rest) = rest.split_once(".allow] ")?;
    let (list, rest) = rest.split_once(" = [\"")?;
    let (entry, _) = rest.split_once("\"]")?;
    let allow = &manifest.functions.get(function)?.settings.allow;
    let known = match list {
        "emit" => &allow.emit,
        "http" => &allow.http,
        _ => return None,
    };
    let all: Vec<&str> = known.iter().map(String::as_str).chain([entry]).collect();
    let lines = serde_json::to_string(&all).ok()?.replace("\",\"", "\", \"");
    Some(format!("[functions.{function}.allow]\n{list} = {lines}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("pelton.toml");
        let text = "pelton = 1\napp = \"shop\"\n[streams.A]\nsubjects = [\"a.>\"]\n[functions.orders]\n\
                    component = \"orders.wasm\"\ndelivery = \"at-least-once\"\n\
                    [functions.orders.allow]\nemit = [\"a.>\"]\n";
        std::fs::write(&file, text).unwrap();
        let manifest = Manifest::load(&file, None).unwrap();
        let emit = "function orders may not emit to b.c; if it should, add to [functions.orders.allow] \
                    emit = [\"b.c\"] in pelton.toml and deploy";
        let http = "refused an HTTP call to a.example: add to [functions.orders.allow] http = [\"a.example\"] in";
        for (message, expected) in [
            (
                emit,
                Some("[functions.orders.allow]\nemit = [\"a.>\", \"b.c\"]"),
            ),
            (
                http,
                Some("[functions.orders.allow]\nhttp = [\"a.example\"]"),
            ),
            ("add to [functions.other.allow] emit = [\"b.c\"]", None),
            ("no stream covers b.c", None),
        ] {
            assert_eq!(hint(message, &manifest).as_deref(), expected, "{message}");
        }
    }
}
