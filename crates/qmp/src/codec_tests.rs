//! Tests of the codec: real lines, tolerance, bounds, any cut, garbage.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn one(text: &str) -> Result<Message> {
    parse(&Line { bytes: text.as_bytes(), offset: 7 })
}

fn salt() -> ClientSalt {
    ClientSalt::from_random([0xff; 4])
}

#[test]
fn the_greeting_of_qemu_10_is_read() {
    let text = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2"}, "capabilities": ["oob"]}}"#;
    let Message::Greeting(greeting) = one(text).unwrap() else { panic!("not a greeting") };
    assert_eq!(greeting.version.qemu.to_string(), "10.0.2");
    assert_eq!(greeting.version.package, "Debian 1:10.0.2");
    assert!(greeting.offers_oob());
}

#[test]
fn a_reply_finds_its_request() {
    let id = RequestId::new(salt(), 3);
    let text = format!(r#"{{"return": {{"a": 1}}, "id": {}}}"#, 0x7fff_ffff_0000_0003u64);
    let Message::Return { id: read, body } = one(&text).unwrap() else { panic!("not a return") };
    assert_eq!(read, Some(id));
    assert_eq!(body.to::<Value>("x").unwrap(), json!({"a": 1}));
}

#[test]
fn a_reply_with_a_foreign_id_is_no_error() {
    for foreign in ["\"libvirt-12\"", "null", "-1", "[1]", "1e400"] {
        let text = format!(r#"{{"return": {{}}, "id": {foreign}}}"#);
        let Message::Return { id, .. } = one(&text).unwrap() else { panic!("not a return") };
        assert_eq!(id, None, "{foreign}");
    }
}

#[test]
fn a_null_return_is_a_return() {
    assert!(matches!(one(r#"{"return": null}"#).unwrap(), Message::Return { body, .. } if body.text() == "null"));
}

#[test]
fn a_refusal_keeps_class_and_description() {
    let text = r#"{"error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}, "id": 1, "new": []}"#;
    let Message::Refusal { error, had_id, .. } = one(text).unwrap() else { panic!("not a refusal") };
    assert_eq!((error.class, error.desc.as_str()), (ErrorClass::DeviceNotFound, "Device 'x' not found"));
    assert!(had_id);
    let Message::Refusal { error, had_id, .. } = one(r#"{"error": {"class": "New", "desc": ""}}"#).unwrap() else {
        panic!("not a refusal")
    };
    assert_eq!(error.class, ErrorClass::Other("New".into()));
    assert!(!had_id);
}

#[test]
fn events_known_and_unknown_are_read() {
    let text =
        r#"{"timestamp": {"seconds": 1, "microseconds": 500000}, "event": "MIGRATION", "data": {"status": "setup"}}"#;
    let Message::Event(event) = one(text).unwrap() else { panic!("not an event") };
    assert_eq!(event.kind, EventKind::Migration);
    assert_eq!(event.text("status").as_deref(), Some("setup"));
    assert_eq!(event.timestamp, Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1500)));
    let Message::Event(event) =
        one(r#"{"event": "FROM_THE_FUTURE", "timestamp": {"seconds": -1, "microseconds": -1}}"#).unwrap()
    else {
        panic!("not an event")
    };
    assert_eq!(event.kind, EventKind::Other("FROM_THE_FUTURE".into()));
    assert_eq!((event.timestamp, event.text("x")), (None, None));
}

#[test]
fn absurd_timestamps_are_no_panic() {
    for (seconds, micros) in [(i64::MAX, 0), (0, i64::MAX), (i64::MIN, 5), (5, 1_000_000)] {
        let text = format!(r#"{{"event": "STOP", "timestamp": {{"seconds": {seconds}, "microseconds": {micros}}}}}"#);
        let Message::Event(event) = one(&text).unwrap() else { panic!("not an event") };
        assert_eq!(event.timestamp, None);
    }
}

#[test]
fn what_is_no_message_is_an_error_with_its_offset() {
    assert!(matches!(one("{}"), Err(Error::NotAMessage { offset: 7 })));
    for garbage in
        ["", "[]", "1", "{", "{\"event\": 5}", "{\"error\": {}}", "{\"return\": 1, \"return\": 2}", "{\"return\": 1} x"]
    {
        assert!(matches!(one(garbage), Err(Error::Malformed { offset: 7, .. })), "{garbage:?} was taken");
    }
}

#[test]
fn a_value_deeper_than_the_recursion_limit_can_be_skipped_but_not_read() {
    #[derive(Deserialize)]
    struct Shallow {
        name: String,
    }
    let deep = format!("{}{}", "{\"a\":".repeat(500), "1".to_owned() + &"}".repeat(500));
    let text = format!(r#"{{"return": {{"image": {deep}, "name": "d0"}}}}"#);
    let Message::Return { body, .. } = one(&text).unwrap() else { panic!("not a return") };
    assert_eq!(body.to::<Shallow>("q").unwrap().name, "d0");
    assert!(matches!(body.to::<Value>("q"), Err(Error::Reply { .. })));
}

#[test]
fn requests_are_encoded_as_the_specification_says() {
    let id = RequestId::new(ClientSalt::from_random([0; 4]), 5);
    let read = |line: Vec<u8>| {
        assert_eq!(line.last(), Some(&b'\n'));
        serde_json::from_slice::<Value>(&line).unwrap()
    };
    assert_eq!(read(encode(Lane::InBand, "stop", &(), Some(id)).unwrap()), json!({"execute": "stop", "id": 5}));
    assert_eq!(
        read(encode(Lane::OutOfBand, "migrate-recover", &json!({"uri": "unix:/a\nb"}), Some(id)).unwrap()),
        json!({"exec-oob": "migrate-recover", "arguments": {"uri": "unix:/a\nb"}, "id": 5})
    );
}

fn messages(decoder: &mut Decoder) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        match decoder.next_message() {
            Ok(Some((message, len))) => all.push(format!("{len} {message:?}")),
            Ok(None) => return all,
            Err(error) => all.push(format!("{error:?}")),
        }
    }
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_messages(
        picks in proptest::collection::vec(0usize..6, 0..20),
        cuts in proptest::collection::vec(1usize..40, 1..10),
    ) {
        let lines = [
            "{\"return\": {}, \"id\": 1}\r\n", "{\"event\": \"STOP\", \"data\": {\"x\": [1, 2]}}\n", "\n",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"\\u00e9\"}, \"id\": 2}\n", "nonsense\n", "{\"x\": 1}\n",
        ];
        let bytes: Vec<u8> = picks.iter().flat_map(|&p| lines[p].bytes()).collect();
        let mut whole = Decoder::new(1 << 20);
        whole.push(&bytes);
        let mut decoder = Decoder::new(1 << 20);
        let (mut rest, mut sizes, mut all) = (&bytes[..], cuts.iter().cycle(), Vec::new());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            decoder.push(now);
            all.extend(messages(&mut decoder));
            rest = later;
        }
        prop_assert_eq!(all, messages(&mut whole));
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut line = bytes;
        line.retain(|&b| b != b'\n');
        prop_assume!(serde_json::from_slice::<Value>(&line).is_err());
        let outcome = parse(&Line { bytes: &line, offset: 0 });
        prop_assert!(outcome.is_err());
    }

    #[test]
    fn a_damaged_message_is_never_a_panic(at in 0usize..80, with in any::<u8>()) {
        let mut line = br#"{"event": "STOP", "data": {"x": [1, 2]}, "timestamp": {"seconds": 1, "microseconds": 2}}"#.to_vec();
        line[at] = with;
        // Whatever it says, it is never taken for a reply to somebody.
        let outcome = parse(&Line { bytes: &line, offset: 0 });
        let is_reply = matches!(outcome, Ok(Message::Return { .. } | Message::Refusal { .. }));
        prop_assert!(!is_reply);
    }
}
