//! Messages in binary, structured and plain mode, and every way in which one of them can be malformed.

use super::*;

const STORED: i64 = 1_700_000_000_000_000_000;

fn message(headers: &[(&str, &str)], payload: &str) -> Message {
    Message {
        subject: "orders.o-1.created".into(),
        headers: headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        stream: "ORDERS".into(),
        sequence: 7,
        stored: STORED,
    }
}

fn binary_with(more: &[(&str, &str)]) -> Message {
    let mut headers = vec![
        ("ce-specversion", "1.0"),
        ("ce-id", "e-1"),
        ("ce-source", "/shop"),
        ("ce-type", "order_created"),
    ];
    headers.extend(more);
    message(&headers, "{}")
}

fn structured_with(body: &str) -> Message {
    message(&[("Content-Type", "application/cloudevents+json")], body)
}

fn event(message: &Message) -> Event {
    decode(message).unwrap().event
}

fn why(message: &Message) -> String {
    decode(message).unwrap_err().0
}

#[test]
fn plain_messages() {
    let e = event(&message(&[], r#"{"a":1}"#));
    assert_eq!(
        (e.id.as_str(), e.source.as_str(), e.ty.as_str(), e.time),
        ("ORDERS:7", "ORDERS", "orders.o-1.created", STORED)
    );
    assert_eq!(e.data.as_ref(), br#"{"a":1}"#);
    assert_eq!(
        (e.datacontenttype, e.subject, e.extensions.len()),
        (None, None, 0)
    );

    for (id, expect) in [("m-1", "m-1"), (" m-1 ", "m-1"), ("", "ORDERS:7")] {
        assert_eq!(event(&message(&[("NATS-msg-ID", id)], "")).id, expect);
    }
    let e = event(&message(
        &[("content-TYPE", "text/plain; charset=utf-8")],
        "x",
    ));
    assert_eq!(
        e.datacontenttype.as_deref(),
        Some("text/plain; charset=utf-8")
    );
    // Without a specversion nothing says that these are attributes.
    assert_eq!(event(&message(&[("ce-id", "other")], "")).id, "ORDERS:7");
    // Nothing in a plain message is malformed.
    assert_eq!(
        event(&message(&[("Nats-Msg-Id", "a\u{1}%ZZ%FF")], "\u{0}")).id,
        "a\u{1}%ZZ%FF"
    );
}

#[test]
fn binary_mode() {
    let decoded = decode(&message(
        &[
            ("X-Trace", "1"),
            ("CE-SpecVersion", "1.0"),
            ("Ce-Id", "e-1"),
            ("ce-SOURCE", "/shop%20one"),
            ("ce-type", "order_created"),
            ("ce-time", "2024-01-01T01:00:00.5+01:00"),
            ("ce-subject", "o-1"),
            ("ce-dataschema", "https://x/y"),
            ("ce-region", "Euro%20%e2%82%ac%20%F0%9F%98%80"),
            ("ce-alpha", ""),
            ("Content-Type", "application/json"),
            ("x-trace", "2"),
            ("Nats-Msg-Id", "m-1"),
        ],
        "[1]",
    ))
    .unwrap();
    let expect = Event {
        id: "e-1".into(),
        source: "/shop one".into(),
        ty: "order_created".into(),
        time: 1_704_067_200_500_000_000,
        subject: Some("o-1".into()),
        datacontenttype: Some("application/json".into()),
        dataschema: Some("https://x/y".into()),
        extensions: [("alpha", ""), ("region", "Euro € 😀")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        data: Bytes::from_static(b"[1]"),
    };
    assert_eq!(decoded.event, expect);
    let headers = [
        ("x-trace", "1"),
        ("content-type", "application/json"),
        ("x-trace", "2"),
        ("nats-msg-id", "m-1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(decoded.headers, headers);
}

#[test]
fn header_values() {
    for (raw, expect) in [
        ("plain", "plain"),
        (" padded ", "padded"),
        ("not encoded", "not encoded"),
        ("Grüße", "Grüße"),
        ("%2525", "%25"),
        ("100%", "100%"),
        ("%zz", "%zz"),
        (r#""quoted \"one\" \\""#, r#"quoted "one" \"#),
        (r#""%41""#, "A"),
        (r#"say "hi""#, r#"say "hi""#),
        (r#""a" and "b""#, r#""a" and "b""#),
        (r#"""#, r#"""#),
        (r#""a\""#, r#""a\""#),
        ("%22a%22", r#""a""#),
    ] {
        let e = event(&binary_with(&[("ce-ext", raw)]));
        assert_eq!(e.extensions["ext"], expect, "{raw}");
    }
}

#[test]
fn content_type_of_binary_mode() {
    for (headers, expect) in [
        (vec![], None),
        (vec![("content-type", "text/plain")], Some("text/plain")),
        (vec![("ce-datacontenttype", "text/csv")], Some("text/csv")),
        (
            vec![
                ("content-type", "text/plain"),
                ("ce-datacontenttype", "text/csv;%20a=b"),
            ],
            Some("text/csv; a=b"),
        ),
    ] {
        assert_eq!(
            event(&binary_with(&headers)).datacontenttype.as_deref(),
            expect
        );
    }
}

#[test]
fn traces() {
    let extension = |message: &Message, name: &str| event(message).extensions.get(name).cloned();
    let plain = message(&[("traceparent", "00-a"), ("TraceState", "s=1")], "");
    assert_eq!(extension(&plain, "traceparent").as_deref(), Some("00-a"));
    assert_eq!(extension(&plain, "tracestate").as_deref(), Some("s=1"));
    // The event's own trace comes first, and its state is not mixed with another's.
    let both = binary_with(&[
        ("traceparent", "00-a"),
        ("tracestate", "s=1"),
        ("ce-traceparent", "00-b"),
    ]);
    assert_eq!(extension(&both, "traceparent").as_deref(), Some("00-b"));
    assert_eq!(extension(&both, "tracestate"), None);
}

#[test]
fn malformed_binary() {
    for (more, expect) in [
        (
            ("ce-time", "yesterday"),
            "attribute `time` is \"yesterday\"",
        ),
        (("ce-time", ""), "attribute `time`"),
        (("ce-time", "1677-01-01T00:00:00Z"), "between 1677 and 2262"),
        (("ce-time", "2263-01-01T00:00:00Z"), "between 1677 and 2262"),
        (
            ("ce-id", "e-2"),
            "attribute `id` comes twice: \"e-1\" and \"e-2\"",
        ),
        (("CE-ID", "e-2"), "attribute `id` comes twice"),
        (("ce-ext", "%C0%A0"), "header `ce-ext` is not UTF-8"),
        (("ce-ext", "%ff"), "header `ce-ext` is not UTF-8"),
        (("ce-", "x"), "no CloudEvents attribute"),
        (("ce-data", "x"), "no CloudEvents attribute"),
    ] {
        let error = why(&binary_with(&[more]));
        assert!(error.contains(expect), "{more:?}: {error}");
    }
    // The same thing said twice is no doubt.
    assert_eq!(event(&binary_with(&[("Ce-Id", "e-1")])).id, "e-1");

    for missing in ["ce-id", "ce-source", "ce-type"] {
        let mut without = binary_with(&[]);
        without.headers.retain(|(name, _)| name != missing);
        let name = missing.trim_start_matches("ce-");
        assert_eq!(why(&without), format!("attribute `{name}` is missing"));
        without.headers.push((missing.to_owned(), "  ".into()));
        assert_eq!(why(&without), format!("attribute `{name}` is empty"));
    }
    for version in ["0.3", "1.0.2", "2.0", ""] {
        let mut other = binary_with(&[]);
        other.headers[0].1 = version.into();
        assert!(why(&other).contains("specversion"), "{version}");
    }
}

#[test]
fn structured_mode() {
    let body = r#" {"specversion":"1.0","id":"e-1","source":"/shop","type":"t","time":"1970-01-01T00:00:00Z",
        "subject":null,"datacontenttype":"application/json","flag":true,"count":12345678901234567890123,
        "price":1.10,"word":"\u00e4","gone":null,
        "data" : {"total": 19.90, "big": 12345678901234567890123} } "#;
    let decoded = decode(&structured_with(body)).unwrap();
    let e = decoded.event;
    assert_eq!((e.id.as_str(), e.time, e.subject), ("e-1", 0, None));
    // Byte for byte: no digit is lost.
    assert_eq!(
        e.data.as_ref(),
        br#"{"total": 19.90, "big": 12345678901234567890123}"#
    );
    let extensions: Vec<_> = e
        .extensions
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(
        extensions,
        [
            ("count", "12345678901234567890123"),
            ("flag", "true"),
            ("price", "1.10"),
            ("word", "ä")
        ]
    );
    assert_eq!(
        decoded.headers,
        [(
            "content-type".to_owned(),
            "application/cloudevents+json".to_owned()
        )]
    );
}

#[test]
fn structured_comes_before_binary() {
    let mut both = structured_with(r#"{"specversion":"1.0","id":"inner","source":"s","type":"t"}"#);
    both.headers.extend(binary_with(&[]).headers);
    let decoded = decode(&both).unwrap();
    assert_eq!(
        (decoded.event.id.as_str(), decoded.event.time),
        ("inner", STORED)
    );
    assert_eq!(decoded.headers.len(), 1);
    for content_type in [
        "application/cloudevents",
        "Application/CloudEvents+JSON; charset=UTF-8",
    ] {
        both.headers[0].1 = content_type.into();
        assert_eq!(event(&both).id, "inner");
    }
}

#[test]
fn structured_data() {
    for (members, expect) in [
        (r#""data":"text""#, r#""text""#),
        (
            r#""data":"a\n\u0041","datacontenttype":"text/plain""#,
            "a\nA",
        ),
        (
            r#""data":"x","datacontenttype":"application/vnd.y+json; a=b""#,
            r#""x""#,
        ),
        (
            r#""data":{"a":1},"datacontenttype":"text/plain""#,
            r#"{"a":1}"#,
        ),
        (r#""data":  7  "#, "7"),
        (r#""data":null"#, ""),
        (r#""data_base64":"aGk=""#, "hi"),
        (r#""data_base64":null"#, ""),
        (r#""data":[]"#, "[]"),
        (r#""datacontenttype":"text/plain""#, ""),
    ] {
        let body = format!(r#"{{"specversion":"1.0","id":"e","source":"s","type":"t",{members}}}"#);
        assert_eq!(
            event(&structured_with(&body)).data,
            expect.as_bytes(),
            "{members}"
        );
    }
}

#[test]
fn malformed_structured() {
    for (body, expect) in [
        ("", "is not JSON"),
        ("not json", "is not JSON"),
        ("{} {}", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("7", "is not a JSON object"),
        ("{}", "attribute `specversion` is missing"),
        (
            r#"{"specversion":"1.0","id":"e","source":"s"}"#,
            "`type` is missing",
        ),
        (
            r#"{"specversion":"1.0","id":"","source":"s","type":"t"}"#,
            "`id` is empty",
        ),
        (
            r#"{"specversion":"1.0","id":7,"source":"s","type":"t"}"#,
            "`id` that is no string",
        ),
        (
            r#"{"specversion":"0.3","id":"e","source":"s","type":"t"}"#,
            "specversion \"0.3\" is not supported",
        ),
        (
            r#"{"specversion":"1.0","id":"e","id":"f","source":"s","type":"t"}"#,
            "`id` comes twice",
        ),
        (
            r#"{"specversion":"1.0","id":"e","source":"s","type":"t","Ext":"x"}"#,
            "lower case",
        ),
        (
            r#"{"specversion":"1.0","id":"e","source":"s","type":"t","ext":{}}"#,
            "neither string",
        ),
        (
            r#"{"specversion":"1.0","id":"e","source":"s","type":"t","time":1}"#,
            "`time` that is no string",
        ),
        (
            r#"{"specversion":"1.0","id":"e","source":"s","type":"t","data":1,"data":2}"#,
            "`data` twice",
        ),
        (
            r#"{"specversion":"1.0","id":"e","source":"s","type":"t","data":1,"data_base64":"aGk="}"#,
            "both",
        ),
        (
            r#"{"specversion":"1.0","id":"e","source":"s","type":"t","data_base64":"?"}"#,
            "not base64",
        ),
        (
            r#"{"specversion":"1.0","id":"e","source":"s","type":"t","data_base64":1}"#,
            "no string",
        ),
    ] {
        let error = why(&structured_with(body));
        assert!(error.contains(expect), "{body}: {error}");
    }
    let mut latin = structured_with("");
    latin.payload = Bytes::from_static(b"{\"id\":\"\xe4\"}");
    assert_eq!(why(&latin), "structured event is not UTF-8");
}

#[test]
fn other_formats_and_batches() {
    for (content_type, expect) in [
        ("application/cloudevents-batch+json", "not a batch"),
        ("application/cloudevents-batch", "not a batch"),
        ("application/cloudevents+avro", "is not supported"),
    ] {
        let error = why(&message(&[("Content-Type", content_type)], "[]"));
        assert!(error.contains(expect), "{error}");
    }
}

/// Whatever comes, an answer comes back: no panic, and no event without its identity.
#[test]
fn anything_at_all() {
    let mut random = fastrand::Rng::with_seed(1);
    let names = [
        "ce-id",
        "Ce-Specversion",
        "ce-",
        "content-type",
        "ce-time",
        "ce-type",
        "ce-source",
        "x",
    ];
    let values = [
        "1.0",
        "",
        "%",
        "%e2%82",
        "\"",
        "application/cloudevents+json",
        "2024-01-01T00:00:00Z",
        "ä",
    ];
    let pieces = [
        "{",
        "}",
        "\"",
        ":",
        ",",
        "data",
        "\"id\"",
        "1",
        "[",
        " ",
        "\\",
        "null",
        "\"data\":",
        "é",
    ];
    for _ in 0..20_000 {
        let headers: Vec<(&str, &str)> = (0..random.usize(..6))
            .map(|_| {
                (
                    names[random.usize(..names.len())],
                    values[random.usize(..values.len())],
                )
            })
            .collect();
        let payload: String = (0..random.usize(..12))
            .map(|_| pieces[random.usize(..pieces.len())])
            .collect();
        if let Ok(decoded) = decode(&message(&headers, &payload)) {
            let e = decoded.event;
            assert!(!e.id.is_empty() && !e.source.is_empty() && !e.ty.is_empty());
        }
    }
}
