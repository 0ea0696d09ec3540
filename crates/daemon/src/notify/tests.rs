//! Against servers that listen, and do as badly as servers do.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver as Heard, Sender, channel};

use aws_lc_rs::hmac;
use base64::Engine as _;
use keyframe_policy::{Healthchecks, Mail, Webhook};
use keyframe_types::SecretFile;
use serde_json::Value;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{self, ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::event::What;
use crate::verdict::Severity;

const SOON: Duration = Duration::from_secs(10);

pub(super) fn event(what: What) -> Event {
    Event {
        what,
        at: "2026-11-29T12:00:00Z".parse().unwrap(),
        host: "host1".to_owned(),
        machine: Some("db".to_owned()),
        policy: Some("prod".to_owned()),
        id: "20261129120000-ab12".to_owned(),
        kind: Some("backup".to_owned()),
        severity: (what == What::AlertRaised).then_some(Severity::Critical),
        text: "it is so".to_owned(),
        advice: Some("do that".to_owned()),
    }
}

fn numbered(number: usize) -> Event {
    Event { text: number.to_string(), ..event(What::JobDone) }
}

/// Fast, so that tests are.
fn pace() -> Pace {
    Pace {
        attempt: Duration::from_millis(300),
        first_pause: Duration::from_millis(10),
        longest_pause: Duration::from_millis(50),
        gather: Duration::from_millis(300),
        waiting: 8,
        ..Pace::default()
    }
}

fn hook(url: &str) -> Webhook {
    Webhook { url: url.to_owned(), secret_file: None, events: Vec::new(), policies: Vec::new() }
}

fn hooks(urls: &[&str]) -> Notify {
    Notify { webhooks: urls.iter().map(|url| hook(url)).collect(), ..Notify::default() }
}

/// A request as it came.
#[derive(Debug, Default)]
struct Request {
    line: String,
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut request = Self::default();
        reader.read_line(&mut request.line).ok().filter(|read| *read > 0)?;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
            request.headers.push(line.trim().to_owned());
        }
        let length = request.header("content-length").unwrap_or("0").parse().ok()?;
        request.body.resize(length, 0);
        reader.read_exact(&mut request.body).ok()?;
        Some(request)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &&String| line.to_ascii_lowercase().starts_with(&format!("{name}:"));
        Some(self.headers.iter().find(named)?.split_once(':')?.1.trim())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A server that does as `serve` does with each connection, in a thread of its own each; connections are numbered from 0.
fn server<T: Send + 'static>(
    serve: impl Fn(usize, TcpStream, &Sender<T>) + Send + Sync + Clone + 'static,
) -> (String, Heard<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = listener.local_addr().unwrap().to_string();
    let (tell, heard) = channel();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let (serve, tell) = (serve.clone(), tell.clone());
            std::thread::spawn(move || serve(number, stream, &tell));
        }
    });
    (place, heard)
}

/// A web server that answers requests with these, the last one again and again.
fn answering(answers: &'static [&'static str]) -> (String, Heard<Request>) {
    let (place, heard) = server(move |number, mut stream, tell: &Sender<Request>| {
        let Some(request) = Request::read(&stream) else { return };
        let answer = answers.get(number).or(answers.last()).unwrap();
        let _ = write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let _ = tell.send(request);
    });
    (format!("http://{place}/hook/s3cret"), heard)
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !so() {
        assert!(begun.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn one_that_never_answers_holds_up_nobody_and_no_memory() {
    let (dead, connected) = server(|_, stream, tell: &Sender<()>| {
        let _ = tell.send(());
        std::thread::sleep(Duration::from_secs(30));
        drop(stream);
    });
    let (good, heard) = answering(&["200 OK"]);
    let notifier = Notifier::start_at(pace(), &hooks(&[&format!("http://{dead}/hook/s3cret"), &good]));
    notifier.tell(&numbered(0));
    connected.recv_timeout(SOON).unwrap();
    // The one that hangs has an event in its hands; each of these reaches the other at once.
    for number in 0..4 {
        let begun = std::time::Instant::now();
        notifier.tell(&numbered(number + 1));
        assert!(begun.elapsed() < Duration::from_millis(50), "{:?}", begun.elapsed());
        assert_eq!(heard.recv_timeout(SOON).unwrap().json()["text"], number.to_string());
    }
    let begun = std::time::Instant::now();
    (5..5000).for_each(|number| notifier.tell(&numbered(number)));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let receivers = notifier.receivers();
    let left = receivers[0].queue.hurry();
    assert!(left <= pace().waiting + 1, "{left}");
    drop(receivers);
    until("the trouble is told", || notifier.troubles().len() == 1);
    let trouble = notifier.troubles().remove(0);
    assert!(trouble.starts_with("the webhook at http://127.0.0.1 fails since "), "{trouble}");
    assert!(trouble.ends_with("it did not answer in time; what it was to be told is being lost"), "{trouble}");
    assert!(!trouble.contains("s3cret"), "{trouble}");
    // Nor does it hold up the end.
    let begun = std::time::Instant::now();
    assert!(notifier.finish(Duration::from_millis(200)) > 0);
    drop(notifier);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn what_is_not_taken_is_sent_again_until_it_is() {
    // More often than one that is refused would be.
    let (url, heard) = answering(&["500 Oops", "429 Slowly", "503 Away", "502 Gone", "500 Oops", "200 OK"]);
    let notifier = Notifier::start_at(pace(), &hooks(&[&url]));
    notifier.tell(&numbered(1));
    notifier.tell(&numbered(2));
    let got: Vec<Value> = (0..7).map(|_| heard.recv_timeout(SOON).unwrap().json()).collect();
    assert!(got[..6].iter().all(|body| *body == got[0] && body["text"] == "1"), "{got:#?}");
    assert_eq!(got[6]["text"], "2");
    assert_ne!(got[6]["delivery"], got[0]["delivery"]);
    assert_eq!(notifier.finish(SOON), 0);
    assert_eq!(notifier.troubles(), Vec::<String>::new());
}

#[test]
fn what_is_refused_makes_room_for_the_next_and_is_told() {
    let (url, heard) = answering(&["400 Bad", "400 Bad", "400 Bad", "200 OK"]);
    let notifier = Notifier::start_at(pace(), &hooks(&[&url]));
    notifier.tell(&numbered(1));
    for _ in 0..3 {
        assert_eq!(heard.recv_timeout(SOON).unwrap().json()["text"], "1");
    }
    until("it is told", || notifier.troubles().first().is_some_and(|told| told.contains("it answered 400; ")));
    notifier.tell(&numbered(2));
    let body = heard.recv_timeout(SOON).unwrap().json();
    assert_eq!((&body["text"], &body["lost_before"]), (&"2".into(), &1.into()));
    until("it is over", || notifier.troubles().is_empty());
}

#[test]
fn a_redirect_is_not_followed() {
    let (other, lured) = answering(&["200 OK"]);
    let (place, heard) = server(move |_, mut stream, tell: &Sender<Request>| {
        let Some(request) = Request::read(&stream) else { return };
        let _ = write!(stream, "HTTP/1.1 307 Go\r\nLocation: {other}\r\nContent-Length: 0\r\n\r\n");
        let _ = tell.send(request);
    });
    let notifier = Notifier::start_at(pace(), &hooks(&[&format!("http://{place}/")]));
    notifier.tell(&numbered(1));
    for _ in 0..3 {
        heard.recv_timeout(SOON).unwrap();
    }
    until("it is told", || notifier.troubles().first().is_some_and(|told| told.contains("it answered 307")));
    assert!(lured.try_recv().is_err());
}

#[test]
fn of_an_answer_without_an_end_little_is_read() {
    // How much could be written before the other side hung up.
    let (place, wrote) = server(|number, mut stream, tell: &Sender<u64>| {
        let Some(_) = Request::read(&stream) else { return };
        let status = if number == 0 { "500 Oops" } else { "200 OK" };
        let _ = write!(stream, "HTTP/1.1 {status}\r\n\r\n");
        let (chunk, mut written) = ([b'x'; 1 << 16], 0);
        while stream.write_all(&chunk).is_ok() && written < 1 << 30 {
            written += chunk.len() as u64;
        }
        let _ = tell.send(written);
    });
    let slow = Pace { attempt: Duration::from_secs(20), ..pace() };
    let notifier = Notifier::start_at(slow, &hooks(&[&format!("http://{place}/")]));
    notifier.tell(&numbered(1));
    for _ in 0..2 {
        let written = wrote.recv_timeout(SOON).unwrap();
        assert!(written < 64 << 20, "{written}: more than buffers of the system hold was read");
    }
    assert_eq!(notifier.finish(SOON), 0);
}

#[test]
fn a_body_is_signed_by_the_secret_that_is_in_the_file_now() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    let (url, heard) = answering(&["200 OK"]);
    let signed = Webhook { secret_file: Some(SecretFile::Path(file.clone())), ..hook(&url) };
    let notifier = Notifier::start_at(pace(), &Notify { webhooks: vec![signed], ..Notify::default() });
    notifier.tell(&event(What::AlertRaised));
    until("the missing secret is told", || notifier.troubles().len() == 1);
    assert!(heard.try_recv().is_err(), "nothing goes out unsigned");
    for secret in ["one", "another"] {
        std::fs::write(&file, format!("{secret}\n")).unwrap();
        let request = heard.recv_timeout(SOON).unwrap();
        let told = request.header("x-hub-signature-256").unwrap().strip_prefix("sha256=").unwrap();
        let tag: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&told[2 * at..2 * at + 2], 16).unwrap()).collect();
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        hmac::verify(&key, &request.body, &tag).unwrap();
        let body = request.json();
        assert_eq!(body["schema"], "keyframe.event/1");
        assert_eq!((&body["what"], &body["severity"]), (&"alert-raised".into(), &"critical".into()));
        assert_eq!((&body["machine"], &body["advice"]), (&"db".into(), &"do that".into()));
        assert_eq!(request.header("x-keyframe-event"), Some("alert-raised"));
        assert_eq!(notifier.finish(SOON), 0);
        std::fs::write(&file, "another\n").unwrap();
        notifier.tell(&event(What::AlertRaised));
    }
}

#[test]
fn each_hears_what_it_wants() {
    let (url, _heard) = answering(&["200 OK"]);
    let prod = || vec!["prod".parse().unwrap()];
    let of_other = |what| Event { policy: Some("other".to_owned()), ..event(what) };
    let of_none = |what| Event { policy: None, ..event(what) };
    let hook = |events: &[What]| To::Webhook(Webhook { events: events.to_vec(), policies: prod(), ..hook(&url) });
    let all = hook(&[]);
    assert!(all.wants(&event(What::JobBegan)) && all.wants(&of_none(What::Alive)));
    assert!(!all.wants(&of_other(What::JobDone)) && !all.wants(&of_none(What::AlertRaised)));
    let some = hook(&[What::JobFailed]);
    assert!(
        some.wants(&event(What::JobFailed)) && !some.wants(&event(What::JobDone)) && !some.wants(&of_none(What::Alive))
    );
    let check = |policies| To::Healthchecks(Healthchecks { url: url.clone(), policies });
    assert!(check(prod()).wants(&event(What::JobBegan)) && !check(prod()).wants(&of_other(What::JobBegan)));
    assert!(check(Vec::new()).wants(&of_other(What::JobDone)) && !check(Vec::new()).wants(&of_none(What::JobDone)));
    assert!(!check(Vec::new()).wants(&event(What::AlertRaised)) && !check(Vec::new()).wants(&event(What::Alive)));
    let mail = |events: &[What]| To::Mail(Mail { events: events.to_vec(), ..mail_to("localhost:25") });
    let wanted = |to: &To| What::ALL.into_iter().filter(|what| to.wants(&event(*what))).collect::<Vec<_>>();
    assert_eq!(wanted(&mail(&[])), [What::JobFailed, What::AlertRaised]);
    assert_eq!(wanted(&mail(&[What::AlertCleared])), [What::AlertCleared]);
}

#[test]
fn a_check_is_pinged_when_jobs_begin_end_and_fail() {
    let (url, heard) = answering(&["200 OK"]);
    let check = Healthchecks { url: url.clone(), policies: Vec::new() };
    let notifier = Notifier::start_at(pace(), &Notify { healthchecks: vec![check], ..Notify::default() });
    let mut runs = Vec::new();
    for (what, behind) in [
        (What::JobBegan, "/start"),
        (What::JobDone, ""),
        (What::JobBegan, "/start"),
        (What::JobIncomplete, "/fail"),
        (What::JobFailed, "/fail"),
    ] {
        notifier.tell(&event(what));
        let request = heard.recv_timeout(SOON).unwrap();
        let (path, run) = request.line.split_once("?rid=").unwrap();
        assert_eq!(path, format!("POST /hook/s3cret{behind}"));
        runs.push(run.to_owned());
        let body = String::from_utf8(request.body).unwrap();
        assert!(
            body.starts_with(&format!("backup of db on host1: {}\nit is so\ntry: do that\n", what.as_str())),
            "{body}"
        );
    }
    assert!(runs.iter().all(|run| *run == runs[0]), "an end belongs to its begin: {runs:?}");
}

#[test]
fn receivers_that_stay_keep_what_waits_and_those_that_go_are_left_alone() {
    let (gone, heard_by_gone) = answering(&["500 Oops"]);
    let (stays, heard) = answering(&["500 Oops", "200 OK"]);
    let slow = Pace { first_pause: Duration::from_millis(300), longest_pause: Duration::from_millis(300), ..pace() };
    let notifier = Notifier::start_at(slow, &hooks(&[&gone, &stays]));
    notifier.tell(&numbered(1));
    heard_by_gone.recv_timeout(SOON).unwrap();
    let first = heard.recv_timeout(SOON).unwrap().json();
    notifier.use_settings(&hooks(&[&stays]));
    assert_eq!(heard.recv_timeout(SOON).unwrap().json(), first, "it is sent again by the same");
    std::thread::sleep(Duration::from_millis(700));
    assert!(heard_by_gone.try_recv().is_err());
}

fn mail_to(server: &str) -> Mail {
    Mail {
        to: vec!["admin@example.org".into(), "night@example.org".into()],
        from: "keyframe@example.org".into(),
        server: server.to_owned(),
        user: None,
        password_file: None,
        ca_file: None,
        events: Vec::new(),
    }
}

/// Speaks as a mail server until the client leaves, or wants TLS: then it is true. What the client says is heard, a letter as one item.
fn converse<S: Read + Write>(stream: &mut S, offers: &str, verdict: &str, hear: impl Fn(String)) -> bool {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).unwrap_or(0) == 0 {
            return false;
        }
        let line = line.trim_end().to_owned();
        hear(line.clone());
        let answer = match line.split(' ').next().unwrap_or_default() {
            "EHLO" => offers,
            "STARTTLS" => "220 go on",
            "AUTH" => "235 welcome",
            "MAIL" | "RCPT" => "250 fine",
            "DATA" => {
                let _ = write!(stream.get_mut(), "354 go on\r\n");
                let lines = stream.by_ref().lines().map_while(Result::ok);
                hear(lines.take_while(|line| line != ".").collect::<Vec<_>>().join("\n"));
                verdict
            }
            "QUIT" => "221 bye",
            _ => "502 what?",
        };
        let _ = write!(stream.get_mut(), "{answer}\r\n").and_then(|()| stream.get_mut().flush());
        if line == "STARTTLS" {
            return true;
        }
    }
}

const LOGIN: &str = "250-here\r\n250 AUTH PLAIN";

/// A mail server without TLS; what a client said. `trouble` is what it answers to the first letter.
fn post_office(trouble: Option<&'static str>) -> (String, Heard<String>) {
    server(move |number, mut stream, tell: &Sender<String>| {
        let _ = write!(stream, "220 here\r\n");
        let verdict = trouble.filter(|_| number == 0).unwrap_or("250 taken");
        converse(&mut stream, LOGIN, verdict, |line| drop(tell.send(line)));
    })
}

/// A mail server with TLS, by `STARTTLS` or from the first byte; what a client said, behind `tls: ` what went through TLS.
/// The certificate is for `name`, and signed by itself; the path is where it is in a file.
fn secure_post_office(security: mail::Security, name: &str, dir: &Path) -> (String, Heard<String>, PathBuf) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let file = dir.join(format!("{name}.pem"));
    std::fs::write(&file, made.cert.pem()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![made.cert.der().clone()], key).unwrap());
    let (place, heard) = server(move |_, mut stream: TcpStream, tell: &Sender<String>| {
        if security != mail::Security::Tls {
            let _ = write!(stream, "220 here\r\n");
            let offers = "250-here\r\n250-STARTTLS\r\n250 AUTH PLAIN";
            if !converse(&mut stream, offers, "250 taken", |line| drop(tell.send(line))) {
                return;
            }
        }
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        if security == mail::Security::Tls && write!(stream, "220 here\r\n").is_err() {
            return;
        }
        converse(&mut stream, LOGIN, "250 taken", |line| drop(tell.send(format!("tls: {line}"))));
    });
    (place, heard, file)
}

/// One attempt to send a letter, and all that the server heard.
fn one_attempt(mail: &Mail, security: mail::Security, heard: Heard<String>) -> (Attempt, Vec<String>) {
    let batch = Batch { events: vec![Arc::new(event(What::AlertRaised))], delivery: "d".into(), lost: 0 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let attempt = runtime.block_on(mail::attempt(mail, security, &batch));
    // Its connections are closed, so that the server has heard all that it ever will.
    drop(runtime);
    std::thread::sleep(Duration::from_millis(200));
    (attempt, heard.try_iter().collect())
}

/// The next letter, and all that was said before it.
fn letter(heard: &Heard<String>) -> (String, Vec<String>) {
    let mut said = Vec::new();
    loop {
        let line = heard.recv_timeout(SOON).expect("a letter");
        if line.contains("Subject:") {
            return (line, said);
        }
        said.push(line);
    }
}

#[test]
fn alerts_of_one_while_come_in_one_letter_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "pass word\n").unwrap();
    let (place, heard) = post_office(Some("451 later"));
    let mail = Mail { user: Some("kf".into()), password_file: Some(SecretFile::Path(password)), ..mail_to(&place) };
    let notifier = Notifier::start_at(pace(), &Notify { mail: vec![mail], ..Notify::default() });
    notifier.tell(&Event { text: "no backup of it was made yet".into(), ..event(What::AlertRaised) });
    notifier.tell(&event(What::JobBegan));
    let hostile = "web\r\nBcc: all@example.org".to_owned();
    notifier.tell(&Event { machine: Some(hostile), kind: Some("drill".into()), ..event(What::JobFailed) });
    let (first, said) = letter(&heard);
    let login = base64::engine::general_purpose::STANDARD.encode("\0kf\0pass word");
    assert!(said.iter().any(|line| *line == format!("AUTH PLAIN {login}")), "{said:?}");
    for line in ["MAIL FROM:<keyframe@example.org>", "RCPT TO:<admin@example.org>", "RCPT TO:<night@example.org>"] {
        assert!(said.iter().any(|said| said.starts_with(line)), "{said:?}");
    }
    assert!(first.contains("Subject: [keyframe host1] 2 messages, 1 of them critical\n"), "{first}");
    assert!(first.contains("Auto-Submitted: auto-generated\n") && first.contains("Message-ID: <"), "{first}");
    assert!(first.contains("db: critical: no backup of it was made yet\n\n    what to do: do that\n"), "{first}");
    assert!(first.contains("    what:       job-failed (drill)\n"), "{first}");
    assert!(first.contains("web  Bcc: all@example.org: it is so\n"), "{first}");
    assert!(!first.contains("\nBcc:"), "{first}");
    // It was not taken: the same letter comes again.
    let (again, _) = letter(&heard);
    assert_eq!(first, again);
    assert_eq!(notifier.finish(SOON), 0);
    // One alone says all in its subject; at the end nothing is gathered any more.
    notifier.tell(&Event { machine: Some("web\nBcc: all@example.org".into()), ..event(What::AlertRaised) });
    let (alone, _) = letter(&heard);
    let subject = alone.lines().find(|line| line.starts_with("Subject:")).unwrap();
    assert_eq!(subject, "Subject: [keyframe host1] web Bcc: all@example.org: critical: it is so");
}

#[test]
fn without_tls_no_password_is_sent() {
    let (place, heard) = post_office(None);
    let mail = Mail { user: Some("kf".into()), ..mail_to(&place) };
    let (attempt, said) = one_attempt(&mail, mail::Security::StartTls, heard);
    let Attempt::Later { why, .. } = attempt else { panic!("{attempt:?}") };
    assert!(why.contains("STARTTLS"), "{why}");
    assert!(said.iter().all(|line| line.starts_with("EHLO") || line == "QUIT"), "{said:?}");
}

#[test]
fn through_tls_a_letter_arrives_and_nothing_of_it_before() {
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "pass word\n").unwrap();
    for security in [mail::Security::Tls, mail::Security::StartTls, mail::Security::StartTlsIfOffered] {
        let (place, heard, certificate) = secure_post_office(security, "127.0.0.1", dir.path());
        let mail = Mail {
            user: Some("kf".into()),
            password_file: Some(SecretFile::Path(password.clone())),
            ca_file: Some(certificate),
            ..mail_to(&place)
        };
        let (attempt, said) = one_attempt(&mail, security, heard);
        assert_eq!(attempt, Attempt::Taken, "{security:?} {said:?}");
        let (secret, open): (Vec<&String>, Vec<&String>) = said.iter().partition(|line| line.starts_with("tls: "));
        let login = base64::engine::general_purpose::STANDARD.encode("\0kf\0pass word");
        assert!(secret.iter().any(|line| **line == format!("tls: AUTH PLAIN {login}")), "{said:?}");
        assert!(
            secret.iter().any(|line| line.contains("Subject: [keyframe host1] db: critical: it is so\n")),
            "{said:?}"
        );
        let greeted = if security == mail::Security::Tls { 0 } else { 2 };
        assert_eq!(open.len(), greeted, "{open:?}");
        assert!(open.iter().all(|line| line.starts_with("EHLO ") || *line == "STARTTLS"), "{open:?}");
    }
}

#[test]
fn who_shows_a_certificate_that_is_not_trusted_is_told_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let stranger = dir.path().join("stranger.pem");
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&stranger, made.cert.pem()).unwrap();
    for security in [mail::Security::Tls, mail::Security::StartTls, mail::Security::StartTlsIfOffered] {
        // Signed by nobody whom the host knows; by another than the one who is named; by that one, but for another server.
        for (name, ca_file, wrong) in [
            ("127.0.0.1", None, "UnknownIssuer"),
            ("127.0.0.1", Some(stranger.clone()), "BadSignature"),
            ("mail.example.org", Some(dir.path().join("mail.example.org.pem")), "not valid for name"),
        ] {
            let (place, heard, _) = secure_post_office(security, name, dir.path());
            let mail = Mail { user: Some("kf".into()), ca_file, ..mail_to(&place) };
            let (attempt, said) = one_attempt(&mail, security, heard);
            let Attempt::Later { why, .. } = attempt else { panic!("{security:?} {name} {attempt:?} {said:?}") };
            assert!(why.contains("certificate") && why.contains(wrong), "{why}");
            assert!(why.ends_with("; it was told nothing. ca_file says whose certificates to trust"), "{why}");
            assert!(said.iter().all(|line| line.starts_with("EHLO ") || line == "STARTTLS"), "{said:?}");
        }
    }
}

#[test]
fn a_server_that_is_not_trusted_is_trouble_until_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (place, heard, certificate) = secure_post_office(mail::Security::StartTls, "127.0.0.1", dir.path());
    let trusted = dir.path().join("trusted.pem");
    let mail = Mail { ca_file: Some(trusted.clone()), ..mail_to(&place) };
    // A handshake may take its time.
    let patient = Pace { attempt: SOON, ..pace() };
    let notifier = Notifier::start_at(patient, &Notify { mail: vec![mail], ..Notify::default() });
    notifier.tell(&event(What::AlertRaised));
    let told = |part: &str| notifier.troubles().first().is_some_and(|trouble| trouble.contains(part));
    until("there is no file", || told(&format!("its certificates {} cannot be used: No such file", trusted.display())));
    assert!(heard.try_recv().is_err(), "nobody is asked before it is known whom to trust");
    std::fs::write(&trusted, "no certificate\n").unwrap();
    until("nothing is in it", || told("cannot be used: there is none in it"));
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&trusted, made.cert.pem()).unwrap();
    until("it is another's", || told("BadSignature"));
    assert!(heard.try_iter().all(|line| line.starts_with("EHLO ") || line == "STARTTLS"));
    std::fs::copy(&certificate, &trusted).unwrap();
    let (letter, _) = letter(&heard);
    assert!(letter.starts_with("tls: ") && letter.contains("db: critical: it is so"), "{letter}");
    assert_eq!(notifier.finish(SOON), 0);
    assert_eq!(notifier.troubles(), Vec::<String>::new());
}
