//! Bytes that are components, and the many that are none.

use super::*;
use crate::sandbox::guests::Guest;

#[test]
fn a_core_module_with_the_section_becomes_a_component() {
    let module = Guest::new("").state().module();
    let component = read(&module).unwrap();
    assert_eq!(component.contract, "0.1.0");
    assert!(
        component
            .imports
            .contains(&"pelton:function/state@0.1.0".to_owned())
    );
    assert!(
        !component
            .imports
            .iter()
            .any(|name| name.starts_with("wasi:"))
    );
    assert!(!component.needs_http());
    assert_eq!(
        read(&module).unwrap().digest,
        component.digest,
        "the same bytes, the same component"
    );
    let again = read(&component.bytes).unwrap();
    assert_eq!(again.digest, component.digest);
    assert_eq!(again.bytes, component.bytes);
}

#[test]
fn anything_else_is_refused_with_the_way_out() {
    let module = Guest::new("").module();
    let component = Guest::new("").component();
    let plain = wat::parse_str("(module (func (export \"run\")))").unwrap();
    let preview1 = wat::parse_str(
        "(module (import \"wasi_snapshot_preview1\" \"fd_write\" (func (param i32 i32 i32 i32) (result i32))))",
    )
    .unwrap();
    let other = wat::parse_str("(component (instance (export \"wasi:cli/run@0.2.0\")))").unwrap();
    let newer = wat::parse_str("(component (instance (export \"pelton:function/handler@0.2.0\")))")
        .unwrap();
    for (name, bytes, says) in [
        ("text", b"hello".to_vec(), "no WebAssembly"),
        ("nothing", Vec::new(), "no WebAssembly"),
        ("magic alone", b"\0asm".to_vec(), "damaged or cut short"),
        (
            "half a module",
            module[..module.len() / 2].to_vec(),
            "cut short",
        ),
        (
            "half a component",
            component[..component.len() / 2].to_vec(),
            "cut short",
        ),
        ("plain module", plain, "without wit-bindgen's section"),
        ("preview 1", preview1, "wasm32-unknown-unknown"),
        ("another world", other, "it exports wasi:cli/run@0.2.0"),
        (
            "a newer contract",
            newer,
            "handler@0.2.0, and this release of Pelton serves 0.1",
        ),
    ] {
        let error = read(&bytes).expect_err(name);
        assert!(error.0.contains(says), "{name}: {error}");
    }
}

#[test]
fn handlers_are_announced_in_the_module_and_added_to_a_component() {
    let handler = |handler: &str, subject: &str| Handler {
        handler: handler.into(),
        subject: subject.into(),
    };
    let (paid, all) = (handler("paid", "orders.*.paid"), handler("all", "orders.>"));
    let mut module = Guest::new("").module();
    module = handlers::append(module, &[&paid]).unwrap();
    let component = read(&module).unwrap();
    assert_eq!(
        component.handlers,
        std::slice::from_ref(&paid),
        "the section survives in the inner module"
    );
    let more = add_handlers(&component.bytes, &[paid.clone(), all.clone()]).unwrap();
    assert_eq!(more.handlers, [all.clone(), paid.clone()], "sorted");
    assert_ne!(more.digest, component.digest);
    let same = add_handlers(&more.bytes, &[all]).unwrap();
    assert_eq!(same.digest, more.digest);
}

#[test]
fn malformed_announcements_are_refused_by_line() {
    let component = Guest::new("").component();
    for (line, says) in [
        ("{\"handler\":\"paid\"}", "missing field `subject`"),
        ("{\"handler\":\"\",\"subject\":\"a\"}", "no name"),
        (
            "{\"handler\":\"a\",\"subject\":\"a..b\"}",
            "subject is none",
        ),
        ("orders", "expected value"),
    ] {
        let text = format!("{{\"handler\":\"ok\",\"subject\":\"a.b\"}}\n\n{line}\n");
        let mut bytes = component.clone();
        bytes.push(0);
        wasm_encoder::Encode::encode(
            &wasm_encoder::CustomSection {
                name: "pelton:handlers".into(),
                data: text.into_bytes().into(),
            },
            &mut bytes,
        );
        let error = read(&bytes).unwrap_err();
        assert!(
            error.0.contains("line 3") && error.0.contains(says),
            "{error}"
        );
    }
}
