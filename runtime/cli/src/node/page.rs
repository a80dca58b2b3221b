//! The table of a node's settings in `docs/node.md`, made of the list of them.

use anyhow::Context;

use super::keys;

const BEGIN: &str = "<!-- settings: begin (made by `pelton docs`) -->\n";
const END: &str = "<!-- settings: end -->\n";

/// A page with the table as it must be.
///
/// # Errors
/// The page does not say where the table goes.
pub fn with_table(page: &str) -> anyhow::Result<String> {
    let (before, rest) = page
        .split_once(BEGIN)
        .with_context(|| format!("the page has no line {BEGIN}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("the page has no line {END}"))?;
    Ok(format!("{before}{BEGIN}{}{END}{after}", table()))
}

fn table() -> String {
    let mut text =
        "| key | variable | flag | type | default | meaning |\n|---|---|---|---|---|---|\n"
            .to_owned();
    for (key, typed) in keys::typed() {
        let cells = [
            format!("`{}`", key.key),
            format!("`{}`", typed.variable),
            format!("`{}`", typed.flag),
            key.kind.to_owned(),
            key.default.to_owned(),
            key.meaning.to_owned(),
        ];
        text += &format!("| {} |\n", cells.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_page_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/node.md");
        let page = std::fs::read_to_string(path).unwrap();
        assert!(
            page == with_table(&page).unwrap(),
            "docs/node.md is out of date; run `pelton docs docs/node.md`"
        );
    }

    #[test]
    fn a_page_without_a_place_for_the_table_is_refused() {
        assert!(with_table("# Node\n").is_err());
        assert!(with_table(&format!("{BEGIN}\n")).is_err());
        let whole = with_table(&format!("a\n{BEGIN}| stale |\n{END}b\n")).unwrap();
        assert!(whole.starts_with("a\n") && whole.ends_with("b\n") && !whole.contains("| stale |"));
    }
}
