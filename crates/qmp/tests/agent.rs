//! The agent's client against a scripted agent: late, silent, garbled, stale, hostile.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use keyframe_qmp::agent::{
    Agent, ClockNs, Exec, ExecStatus, Frozen, FsfreezeFreeze, FsfreezeStatus, FsfreezeThaw, GetTime, Info,
    NetworkGetInterfaces, Ping, SetTime,
};
use keyframe_qmp::{Error, ErrorClass};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(60);

struct Guest {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Guest {
    fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn reply(&mut self, value: &Value) {
        self.say(format!("{}\n", json!({"return": value})).as_bytes());
    }

    fn hear(&mut self) -> Value {
        let mut line = Vec::new();
        self.lines.read_until(b'\n', &mut line).unwrap();
        let start = line.iter().take_while(|&&byte| byte == 0xff).count();
        serde_json::from_slice(&line[start..]).unwrap_or_else(|_| panic!("heard {line:?}"))
    }

    /// Hears a synchronization and returns its number.
    fn hear_sync(&mut self) -> Value {
        let mut first = [0];
        self.lines.read_exact(&mut first).unwrap();
        assert_eq!(first, [0xff], "the parser must be cleared first");
        let request = self.hear();
        assert_eq!(request["execute"], "guest-sync-delimited");
        request["arguments"]["id"].clone()
    }

    fn answer_sync(&mut self, id: &Value) {
        self.say(b"\xff");
        self.reply(id);
    }

    fn sync(&mut self) {
        let id = self.hear_sync();
        self.answer_sync(&id);
    }

    /// Hears this command and returns its arguments.
    fn hear_command(&mut self, name: &str) -> Value {
        let request = self.hear();
        assert_eq!(request["execute"], name);
        request["arguments"].clone()
    }
}

fn talk(script: impl FnOnce(&mut Guest) + Send + 'static) -> (Agent, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut guest = Guest { lines: BufReader::new(theirs.try_clone().unwrap()), stream: theirs };
        script(&mut guest);
    });
    (Agent::from_stream(ours).unwrap(), thread)
}

#[test]
fn one_synchronization_serves_many_calls() {
    let (mut agent, thread) = talk(|guest| {
        guest.sync();
        for reply in [json!({}), json!(3), json!("frozen"), json!(3)] {
            guest.hear();
            guest.reply(&reply);
        }
    });
    agent.call(&Ping {}, LONG).unwrap();
    assert_eq!(agent.call(&FsfreezeFreeze {}, LONG).unwrap(), 3);
    assert_eq!(agent.call(&FsfreezeStatus {}, LONG).unwrap(), Frozen::Frozen);
    assert_eq!(agent.call(&FsfreezeThaw {}, LONG).unwrap(), 3);
    thread.join().unwrap();
}

#[test]
fn what_others_left_behind_is_skipped() {
    let (mut agent, thread) = talk(|guest| {
        guest.say(
            b"ept\": 1}}\n{\"return\": 99}\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"old\"}}\n{\"retu",
        );
        let id = guest.hear_sync();
        guest.say(b"\xff{\"return\": 12345}\n");
        guest.answer_sync(&id);
        guest.hear_command("guest-ping");
        guest.reply(&json!({}));
    });
    agent.call(&Ping {}, LONG).unwrap();
    thread.join().unwrap();
}

#[test]
fn an_answer_that_comes_too_late_is_not_taken_for_another() {
    let (mut agent, thread) = talk(|guest| {
        guest.sync();
        guest.hear_command("guest-fsfreeze-freeze");
        let id = guest.hear_sync();
        guest.reply(&json!(7)); // the freeze, at last
        guest.answer_sync(&id);
        guest.hear_command("guest-fsfreeze-thaw");
        guest.reply(&json!(2));
    });
    let error = agent.call(&FsfreezeFreeze {}, SHORT).unwrap_err();
    assert!(
        matches!(&error, Error::Timeout { command, waited } if command == "guest-fsfreeze-freeze" && *waited >= SHORT),
        "{error}"
    );
    assert_eq!(agent.call(&FsfreezeThaw {}, LONG).unwrap(), 2);
    thread.join().unwrap();
}

#[test]
fn an_answer_to_an_earlier_synchronization_is_not_taken_for_this_one() {
    let (mut agent, thread) = talk(|guest| {
        let old = guest.hear_sync();
        let new = guest.hear_sync();
        assert_ne!(old, new);
        guest.answer_sync(&old);
        guest.answer_sync(&new);
        guest.hear_command("guest-ping");
        guest.reply(&json!({}));
    });
    let error = agent.call(&Ping {}, SHORT).unwrap_err();
    assert!(matches!(error, Error::AgentSilent { .. }), "{error}");
    agent.call(&Ping {}, LONG).unwrap();
    thread.join().unwrap();
}

#[test]
fn silence_is_told_in_time_and_the_command_was_not_sent() {
    let (mut agent, thread) = talk(|guest| {
        guest.hear_sync();
        guest.stream.set_read_timeout(Some(4 * SHORT)).unwrap();
        let mut more = [0];
        assert!(guest.lines.read_exact(&mut more).is_err(), "more than the synchronization was sent");
    });
    let before = Instant::now();
    let error = agent.call(&FsfreezeFreeze {}, SHORT).unwrap_err();
    assert!(matches!(error, Error::AgentSilent { .. }), "{error}");
    assert!(before.elapsed() >= SHORT && before.elapsed() < LONG);
    thread.join().unwrap();
}

#[test]
fn an_endless_stream_ends_with_the_time_limit() {
    for noise in [&b"{\"return\": 1}\n"[..], b"x", b"\xff", b"nonsense\n"] {
        let (mut agent, thread) = talk(move |guest| {
            let chunk = noise.repeat(4096);
            while guest.stream.write_all(&chunk).is_ok() {}
        });
        let before = Instant::now();
        let error = agent.call(&Ping {}, 2 * SHORT).unwrap_err();
        assert!(matches!(error, Error::AgentSilent { .. }), "{error}");
        assert!(before.elapsed() < LONG / 2, "{noise:?} took {:?}", before.elapsed());
        drop(agent);
        thread.join().unwrap();
    }
}

#[test]
fn a_garbled_reply_is_an_error_and_the_next_call_synchronizes() {
    let (mut agent, thread) = talk(|guest| {
        guest.sync();
        guest.hear_command("guest-ping");
        guest.say(b"{\"return\": \n");
        guest.sync();
        guest.hear_command("guest-ping");
        guest.reply(&json!({}));
    });
    assert!(matches!(agent.call(&Ping {}, LONG), Err(Error::Malformed { .. })));
    agent.call(&Ping {}, LONG).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_refusal_has_its_class_and_keeps_step() {
    let (mut agent, thread) = talk(|guest| {
        guest.sync();
        guest.hear_command("guest-exec");
        guest.say(
            b"{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"Command guest-exec has been disabled\"}}\n",
        );
        guest.hear_command("guest-ping");
        guest.reply(&json!({}));
    });
    let error = agent.call(&Exec::new("true", [] as [&str; 0]), LONG).unwrap_err();
    assert_eq!(error.class(), Some(&ErrorClass::CommandNotFound));
    assert!(error.is_refusal());
    agent.call(&Ping {}, LONG).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_reply_of_the_wrong_shape_is_an_error() {
    let (mut agent, thread) = talk(|guest| {
        guest.sync();
        guest.hear_command("guest-fsfreeze-freeze");
        guest.reply(&json!(-1));
    });
    assert!(matches!(agent.call(&FsfreezeFreeze {}, LONG), Err(Error::Reply { .. })));
    thread.join().unwrap();
}

#[test]
fn a_channel_that_closes_is_told_at_once() {
    let (mut agent, thread) = talk(|guest| guest.sync());
    let before = Instant::now();
    let error = agent.call(&Ping {}, LONG).unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }) && error.is_fatal(), "{error}");
    assert!(before.elapsed() < LONG / 2);
    thread.join().unwrap();
}

#[test]
fn commands_are_spelled_as_the_agent_expects() {
    let (mut agent, thread) = talk(|guest| {
        guest.sync();
        assert_eq!(guest.hear_command("guest-info"), json!({}));
        guest.reply(&json!({"version": "10.0.2", "supported_commands": [
            {"name": "guest-exec", "enabled": false, "success-response": true},
            {"name": "guest-ping", "enabled": true, "success-response": true}]}));
        guest.hear_command("guest-get-time");
        guest.reply(&json!(1_700_000_000_000_000_000i64));
        assert_eq!(guest.hear_command("guest-set-time"), json!({"time": 1_700_000_000_000_000_000i64}));
        guest.reply(&json!({}));
        let exec = json!({"path": "sh", "arg": ["-c", "echo"], "capture-output": true});
        assert_eq!(guest.hear_command("guest-exec"), exec);
        guest.reply(&json!({"pid": 42}));
        assert_eq!(guest.hear_command("guest-exec-status"), json!({"pid": 42}));
        guest.reply(&json!({"exited": true, "exitcode": 0, "out-data": "Cg=="}));
        guest.hear_command("guest-network-get-interfaces");
        guest.reply(&json!([{"name": "lo"}, {"name": "eth0", "hardware-address": "52:54:00:00:00:01",
            "ip-addresses": [{"ip-address": "10.0.2.15", "ip-address-type": "ipv4", "prefix": 24}]}]));
    });
    let info = agent.call(&Info {}, LONG).unwrap();
    assert!(info.can("guest-ping") && !info.can("guest-exec") && !info.can("guest-unknown"));
    let time: ClockNs = agent.call(&GetTime {}, LONG).unwrap();
    agent.call(&SetTime { time: Some(time) }, LONG).unwrap();
    let process = agent.call(&Exec::new("sh", ["-c", "echo"]), LONG).unwrap();
    let status = agent.call(&ExecStatus::of(process), LONG).unwrap();
    assert_eq!((status.exited, status.exit_code, status.out_data.bytes()), (true, Some(0), &b"\n"[..]));
    let interfaces = agent.call(&NetworkGetInterfaces {}, LONG).unwrap();
    assert_eq!(interfaces[1].ip_addresses[0].prefix_bits, 24);
    thread.join().unwrap();
}
