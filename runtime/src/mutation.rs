//! Faults in the protocol itself, put in on purpose: each takes one safeguard away, and a test must then fail (`make mutations`).
//! They exist only in builds with the feature `mutations`; the variable `PELTON_MUTATION` chooses one.

/// Whether the safeguard of this name is taken away.
#[cfg(feature = "mutations")]
pub(crate) fn is(name: &str) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var("PELTON_MUTATION").ok());
    chosen.as_deref() == Some(name)
}

/// Never: this build has all safeguards.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub(crate) const fn is(_name: &str) -> bool {
    false
}
