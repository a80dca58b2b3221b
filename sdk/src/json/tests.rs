//! The reader against serde_json: the same texts are taken, with the same values.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::from_slice;

const TEXTS: &[&str] = &[
    "null",
    " true ",
    "false",
    "0",
    "-0",
    "-1",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "-9223372036854775809",
    "1.5",
    "-0.0",
    "1e3",
    "1E-2",
    "1e400",
    "2.50e+10",
    "\"\"",
    "\"a\"",
    "\"ä€😀\"",
    r#""\"\\\/\b\f\n\r\t""#,
    r#""\u00e4\u20AC\ud83d\ude00""#,
    r#""a\u0000b""#,
    "[]",
    "[ ]",
    "[1]",
    "[1 , 2,[3,{}]]",
    "{}",
    "{ }",
    r#"{"a":1}"#,
    "{\"a\" :\n[1, {\"b\":null}],\t\"c\":\"\"}",
    r#"{"a":1,"a":2}"#,
    r#"{"\u0061":1}"#,
    "",
    " ",
    "nul",
    "nulll",
    "tru",
    "True",
    "01",
    "-",
    "+1",
    "1.",
    ".5",
    "1e",
    "1e+",
    "0x1",
    "NaN",
    "\"",
    "\"a",
    "\"\\\"",
    r#""\x""#,
    r#""\u12""#,
    r#""\ud800""#,
    r#""\ud800\n""#,
    r#""\ud800\u0041""#,
    r#""\udc00""#,
    "\"\n\"",
    "\"\u{1}\"",
    "[",
    "[1",
    "[1,",
    "[1,]",
    "[,1]",
    "[1 2]",
    "]",
    "{",
    r#"{"a"#,
    r#"{"a""#,
    r#"{"a":"#,
    r#"{"a":1"#,
    r#"{"a":1,"#,
    r#"{"a":1,}"#,
    r#"{"a" 1}"#,
    "{a:1}",
    "{1:1}",
    r#"{"a":1 "b":2}"#,
    "{,}",
    "1 2",
    "[] x",
    "{}}",
    "'a'",
    "/**/1",
    "\u{feff}1",
];

fn same<T: serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(text: &str) {
    let ours = from_slice::<T>(text.as_bytes());
    let theirs = serde_json::from_str::<T>(text);
    match (&ours, &theirs) {
        (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs, "{text:?}"),
        (Err(_), Err(_)) => {}
        _ => panic!("{text:?}: {ours:?}, but serde_json: {theirs:?}"),
    }
}

#[derive(Debug, PartialEq, Deserialize)]
enum Shape {
    Point,
    Circle(f64),
    Line(i8, i8),
    Box { width: u32, name: Option<String> },
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Tagged {
    Empty,
    Full { count: u8 },
}

#[derive(Debug, PartialEq, Deserialize)]
struct Flat {
    id: char,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Unit;

#[derive(Debug, PartialEq, Deserialize)]
struct Newtype(u16);

#[test]
fn any_value() {
    for text in TEXTS {
        same::<Value>(text);
        // Of a value that nobody wants serde_json checks less.
        if !text.contains("\\ud") {
            same::<serde::de::IgnoredAny>(text);
        }
    }
}

#[test]
fn every_type_on_every_text() {
    // To serde_json -0 is never an integer.
    for text in TEXTS.iter().filter(|text| **text != "-0") {
        same::<bool>(text);
        same::<i8>(text);
        same::<u64>(text);
        same::<i64>(text);
        same::<u128>(text);
        same::<i128>(text);
        same::<f32>(text);
        same::<f64>(text);
        same::<char>(text);
        same::<String>(text);
        same::<()>(text);
        same::<Unit>(text);
        same::<Newtype>(text);
        same::<Option<u8>>(text);
        same::<Vec<Value>>(text);
        same::<(u8, u8)>(text);
        same::<BTreeMap<String, Value>>(text);
        same::<Shape>(text);
    }
}

#[test]
fn what_derive_makes() {
    for text in [
        r#""Point""#,
        r#"{"Point":null}"#,
        r#"{"Point":1}"#,
        r#"{"Circle":1}"#,
        r#"{"Circle":1.5}"#,
        r#"{"Line":[1,-2]}"#,
        r#"{"Line":[1]}"#,
        r#"{"Line":[1,2,3]}"#,
        r#"{"Box":{"width":7}}"#,
        r#"{"Box":{"width":7,"name":"x","more":[]}}"#,
        r#"{"Box":{"name":"x"}}"#,
        r#"{"Other":1}"#,
        r#""Circle""#,
        r#"{"Circle":1,"Line":[1,2]}"#,
        "{}",
    ] {
        same::<Shape>(text);
    }
    for text in [
        r#"{"kind":"empty"}"#,
        r#"{"count":3,"kind":"full"}"#,
        r#"{"kind":"full","count":300}"#,
        "{}",
    ] {
        same::<Tagged>(text);
    }
    same::<Flat>(r#"{"a":[1,{"b":2.5}],"id":"x","c":null}"#);
    same::<BTreeMap<i32, u8>>(r#"{"-7":1,"8":2}"#);
    same::<BTreeMap<i32, u8>>(r#"{"x":1}"#);
    same::<BTreeMap<bool, u8>>(r#"{"true":1}"#);
    same::<BTreeMap<Option<char>, u8>>(r#"{"a":1}"#);
}

#[test]
fn nesting_has_an_end() {
    for depth in [100, 127, 128, 200, 100_000] {
        let text = "[".repeat(depth) + &"]".repeat(depth);
        same::<Value>(&text);
        assert_eq!(
            from_slice::<serde::de::IgnoredAny>(text.as_bytes()).is_ok(),
            depth < 128
        );
    }
}

#[test]
fn raw_values_keep_their_text() {
    for text in ["1.50", "\"a\\u0041\"", "{\"a\" : [1, 2] }", "null"] {
        let padded = format!("[ {text} ]");
        let raw: Vec<Box<RawValue>> = from_slice(padded.as_bytes()).unwrap();
        assert_eq!(raw[0].get(), text);
    }
    assert!(from_slice::<Box<RawValue>>(b"[1,]").is_err());
}

#[test]
fn text_must_be_utf8() {
    let error = from_slice::<String>(b"\"a\xff\"").unwrap_err();
    assert_eq!(error, "not UTF-8 from byte 2 on");
}
