//! Drafts become messages that `decode` reads back as the same event.

use super::super::{Message, decode, owned};
use super::*;

fn draft() -> Draft {
    Draft {
        subject: "notifications.email".into(),
        id: None,
        source: None,
        ty: None,
        time: None,
        datacontenttype: None,
        attributes: Vec::new(),
        data: Bytes::from_static(b"{}"),
    }
}

fn defaults() -> DraftDefaults {
    DraftDefaults {
        id: "txn.0".into(),
        source: "/shop/notifier".into(),
        time: 1_704_067_200_500_000_000,
        trace: vec![
            ("traceparent".into(), "00-a".into()),
            ("tracestate".into(), "s=1".into()),
        ],
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn message(outgoing: Outgoing) -> Message {
    Message {
        subject: outgoing.subject,
        headers: owned(outgoing.headers),
        payload: outgoing.payload,
        stream: "OTHER".into(),
        sequence: 1,
        stored: 0,
    }
}

#[test]
fn gaps_are_filled() {
    let outgoing = encode(draft(), defaults()).unwrap();
    let expect = pairs(&[
        ("ce-specversion", "1.0"),
        ("ce-id", "txn.0"),
        ("ce-source", "/shop/notifier"),
        ("ce-type", "notifications.email"),
        ("ce-time", "2024-01-01T00:00:00.5Z"),
        ("ce-datacontenttype", "application/json"),
        ("ce-traceparent", "00-a"),
        ("ce-tracestate", "s=1"),
        ("content-type", "application/json"),
        ("traceparent", "00-a"),
        ("tracestate", "s=1"),
    ]);
    assert_eq!(owned(outgoing.headers), expect);
    assert_eq!(outgoing.subject, "notifications.email");
    assert_eq!(outgoing.payload.as_ref(), b"{}");
}

#[test]
fn what_the_draft_says_counts() {
    let outgoing = encode(
        Draft {
            id: Some("Euro € 😀 \"100%\"".into()),
            source: Some("/s".into()),
            ty: Some("t".into()),
            time: Some(-1),
            datacontenttype: Some("text/plain; charset=utf-8".into()),
            attributes: pairs(&[
                ("zeta", "z"),
                ("subject", "o-1"),
                ("dataschema", "https://x/y"),
                ("traceparent", "00-own"),
                ("alpha", ""),
            ]),
            ..draft()
        },
        defaults(),
    )
    .unwrap();
    let expect = pairs(&[
        ("ce-specversion", "1.0"),
        ("ce-id", "Euro%20%E2%82%AC%20%F0%9F%98%80%20%22100%25%22"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
        ("ce-time", "1969-12-31T23:59:59.999999999Z"),
        ("ce-subject", "o-1"),
        ("ce-dataschema", "https://x/y"),
        ("ce-datacontenttype", "text/plain;%20charset=utf-8"),
        ("ce-alpha", ""),
        ("ce-traceparent", "00-own"),
        ("ce-zeta", "z"),
        ("content-type", "text/plain; charset=utf-8"),
        ("traceparent", "00-own"),
    ]);
    assert_eq!(owned(outgoing.headers), expect);
}

#[test]
fn data_that_is_a_structured_event_stays_data() {
    let outgoing = encode(
        Draft {
            datacontenttype: Some("application/cloudevents+json".into()),
            ..draft()
        },
        defaults(),
    )
    .unwrap();
    let event = decode(&message(outgoing)).unwrap().event;
    assert_eq!(event.id, "txn.0");
    assert_eq!(
        event.datacontenttype.as_deref(),
        Some("application/cloudevents+json")
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn malformed_drafts() {
    let with = |change: fn(&mut Draft)| {
        let mut changed = draft();
        change(&mut changed);
        encode(changed, defaults()).unwrap_err()
    };
    for (error, expect) in [
        (
            with(|d| d.subject = "a.*".into()),
            "subject \"a.*\" cannot be published to",
        ),
        (with(|d| d.subject = "a.>".into()), "cannot be published to"),
        (
            with(|d| d.subject = "a..b".into()),
            "cannot be published to",
        ),
        (
            with(|d| d.subject = String::new()),
            "cannot be published to",
        ),
        (with(|d| d.subject = "a b".into()), "cannot be published to"),
        (
            with(|d| d.id = Some(String::new())),
            "attribute `id` is empty",
        ),
        (
            with(|d| d.source = Some(String::new())),
            "attribute `source` is empty",
        ),
        (
            with(|d| d.ty = Some(String::new())),
            "attribute `type` is empty",
        ),
        (
            with(|d| d.id = Some("a\r\nb".into())),
            "control character U+000D",
        ),
        (
            with(|d| d.ty = Some("a\u{85}".into())),
            "control character U+0085",
        ),
        (
            with(|d| d.datacontenttype = Some(String::new())),
            "no media type",
        ),
        (
            with(|d| d.datacontenttype = Some("json".into())),
            "no media type",
        ),
        (
            with(|d| d.datacontenttype = Some("a/b\r\nx: y".into())),
            "no media type",
        ),
        (
            with(|d| d.attributes = pairs(&[("", "x")])),
            "attribute name \"\"",
        ),
        (
            with(|d| d.attributes = pairs(&[("Ext", "x")])),
            "attribute name \"Ext\"",
        ),
        (
            with(|d| d.attributes = pairs(&[("my-ext", "x")])),
            "attribute name",
        ),
        (
            with(|d| d.attributes = pairs(&[("abcdefghijklmnopqrstu", "x")])),
            "1 to 20 bytes",
        ),
        (
            with(|d| d.attributes = pairs(&[("id", "x")])),
            "place of its own",
        ),
        (
            with(|d| d.attributes = pairs(&[("data", "x")])),
            "place of its own",
        ),
        (
            with(|d| d.attributes = pairs(&[("specversion", "1.0")])),
            "place of its own",
        ),
        (
            with(|d| d.attributes = pairs(&[("a", "x"), ("a", "x")])),
            "given twice",
        ),
        (
            with(|d| d.attributes = pairs(&[("a", "x\ny")])),
            "control character",
        ),
        (
            with(|d| d.attributes = pairs(&[("subject", "")])),
            "`subject` is empty",
        ),
    ] {
        assert!(error.contains(expect), "{error}");
    }
}

/// What was emitted is what arrives.
#[test]
fn round_trip() {
    let mut random = fastrand::Rng::with_seed(2);
    let alphabet: Vec<char> = " a0%\"\\;,:=/+-.~äß€😀漢\u{a0}\u{2028}%41"
        .chars()
        .collect();
    for _ in 0..20_000 {
        let mut text = || -> String {
            let body: String = (0..random.usize(..8))
                .map(|_| alphabet[random.usize(..alphabet.len())])
                .collect();
            format!("x{body}x")
        };
        let attributes = vec![
            ("subject".to_owned(), text()),
            ("ext".to_owned(), text()),
            ("traceparent".to_owned(), text()),
        ];
        let (id, source, ty) = (text(), text(), text());
        let time = random.i64(..);
        let data: Bytes = (0..random.usize(..16)).map(|_| random.u8(..)).collect();
        let outgoing = encode(
            Draft {
                id: Some(id.clone()),
                source: Some(source.clone()),
                ty: Some(ty.clone()),
                time: Some(time),
                attributes: attributes.clone(),
                data: data.clone(),
                ..draft()
            },
            defaults(),
        )
        .unwrap();
        assert!(outgoing.headers.iter().all(|(_, value)| {
            value.is_ascii() && !value.bytes().any(|b| b.is_ascii_control())
        }));
        let event = decode(&message(outgoing)).unwrap().event;
        assert_eq!((event.id, event.source, event.ty), (id, source, ty));
        assert_eq!((event.time, event.data), (time, data));
        assert_eq!(event.subject.as_ref(), Some(&attributes[0].1));
        assert_eq!(event.extensions["ext"], attributes[1].1);
        assert_eq!(event.extensions["traceparent"], attributes[2].1);
    }
}

/// A plain message that is published again with its attributes as headers is the same event.
#[test]
fn a_plain_message_keeps_its_identity() {
    let mut plain = Message {
        subject: "orders.o-1.paid".into(),
        headers: pairs(&[
            ("Nats-Msg-Id", " m 1% "),
            ("Content-Type", "text/plain; a=b"),
        ]),
        payload: Bytes::from_static(b"x"),
        stream: "ORDERS".into(),
        sequence: 9,
        stored: 1_234_567_890_123_456_789,
    };
    let before = decode(&plain).unwrap().event;
    plain.headers.extend(owned(attribute_headers(&before)));
    plain.headers[0].1 = "replay:PELTON_DEAD_shop:3".into();
    (plain.stream, plain.sequence, plain.stored) = ("OTHER".into(), 77, 0);
    assert_eq!(decode(&plain).unwrap().event, before);
}
