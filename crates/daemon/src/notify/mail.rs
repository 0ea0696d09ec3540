//! Letters: what is wrong, with which machine, what to do; several events of a minute in one.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use keyframe_policy::Mail;
use lettre::message::Mailbox;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{self, pki_types::CertificateDer};

use super::Attempt;
use super::queue::Batch;
use super::webhook::{self, small_file};
use crate::event::{Event, What};
use crate::verdict::Severity;

/// The most events of one letter.
pub(super) const MOST: usize = 50;
/// The most of a file with certificates, in bytes: the host's own have a fourth of it.
const MOST_CERTIFICATES: u64 = 1 << 20;
/// How long the server may take for each answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What goes into a letter where nothing else is said.
const USUAL: [What; 2] = [What::AlertRaised, What::JobFailed];

pub(super) fn wants(mail: &Mail, event: &Event) -> bool {
    if mail.events.is_empty() { USUAL.contains(&event.what) } else { mail.events.contains(&event.what) }
}

/// How the connection is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Security {
    /// Not at all: the server is on this host.
    None,
    /// TLS from the first byte.
    Tls,
    /// TLS, or nothing is sent: there is a password, or it is said who signed the server's certificate.
    StartTls,
    /// TLS where the server offers it.
    StartTlsIfOffered,
}

impl Security {
    pub(super) fn of(mail: &Mail) -> Self {
        let (host, port) = place(mail);
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        match port {
            _ if here && mail.ca_file.is_none() => Self::None,
            465 => Self::Tls,
            _ if mail.user.is_some() || mail.ca_file.is_some() => Self::StartTls,
            _ => Self::StartTlsIfOffered,
        }
    }
}

/// Host and port of `HOST:PORT`; brackets round an IPv6 address are not part of it.
fn place(mail: &Mail) -> (&str, u16) {
    let (host, port) = mail.server.rsplit_once(':').unwrap_or((&mail.server, "25"));
    (host.trim_start_matches('[').trim_end_matches(']'), port.parse().unwrap_or(25))
}

/// One line, no control characters: what a name must be in a header and in a line of its own.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn headline(event: &Event) -> String {
    let about = event.machine.as_deref().map(|machine| format!("{machine}: ")).unwrap_or_default();
    let weight = match (event.what, event.severity) {
        (What::AlertRaised, Some(Severity::Critical)) => "critical: ",
        (What::AlertRaised, Some(Severity::Warning)) => "warning: ",
        (What::AlertCleared, _) => "no more: ",
        _ => "",
    };
    line(&format!("{about}{weight}{}", event.text.lines().next().unwrap_or_default()))
}

fn subject(batch: &Batch) -> String {
    let host = batch.events.first().map(|event| line(&event.host)).unwrap_or_default();
    let what = match &batch.events[..] {
        [event] => headline(event),
        events => {
            let is_critical = |event: &&std::sync::Arc<Event>| event.severity == Some(Severity::Critical);
            let critical = events.iter().filter(is_critical).count();
            format!("{} messages, {critical} of them critical", events.len())
        }
    };
    let short: String = what.chars().take(120).collect();
    format!("[keyframe {host}] {short}")
}

fn text(batch: &Batch) -> String {
    let mut text = String::new();
    for event in &batch.events {
        let _ = writeln!(text, "{}\n", headline(event));
        for more in event.text.lines().skip(1) {
            let _ = writeln!(text, "    {}", line(more));
        }
        let mut say = |name: &str, value: &str| {
            let _ = writeln!(text, "    {name:<11} {}", line(value));
        };
        if let Some(advice) = &event.advice {
            say("what to do:", advice);
        }
        if let Some(machine) = &event.machine {
            say("machine:", machine);
        }
        say("host:", &event.host);
        if let Some(policy) = &event.policy {
            say("policy:", policy);
        }
        say("what:", &format!("{} ({})", event.what.as_str(), event.kind.as_deref().unwrap_or(&event.id)));
        say("when:", &event.at.to_string());
        text.push('\n');
    }
    if batch.lost > 0 {
        let _ = writeln!(text, "{} messages before these could not be sent, and are lost.", batch.lost);
    }
    text
}

fn letter(mail: &Mail, batch: &Batch) -> Result<Message, String> {
    let mailbox = |address: &String| {
        let address: Address = address.parse().map_err(|error| format!("{address} is no address: {error}"))?;
        Ok::<_, String>(Mailbox::new(None, address))
    };
    let host = batch.events.first().map(|event| event.host.as_str()).unwrap_or_default();
    let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')).collect();
    let host = if host.is_empty() { "localhost" } else { &host };
    let mut builder = Message::builder().from(mailbox(&mail.from)?);
    for to in &mail.to {
        builder = builder.to(mailbox(to)?);
    }
    // The same at each attempt: a server that took it and whose answer was lost can tell.
    builder = builder.message_id(Some(format!("<{}@{host}>", batch.delivery))).subject(subject(batch));
    let auto = HeaderName::new_from_ascii_str("Auto-Submitted");
    builder = builder.raw_header(HeaderValue::new(auto, "auto-generated".to_owned()));
    // Of the last event, so that a letter that is sent again is the same.
    let date = batch.events.last().map_or_else(SystemTime::now, |event| event.at.into());
    let builder = builder.header(ContentType::TEXT_PLAIN).date(date);
    builder.body(text(batch)).map_err(|error| error.to_string())
}

pub(super) async fn attempt(mail: &Mail, security: Security, batch: &Batch) -> Attempt {
    let letter = match letter(mail, batch) {
        Ok(letter) => letter,
        Err(why) => return Attempt::Refused { why },
    };
    let (host, port) = place(mail);
    let tls = match security {
        Security::None => Tls::None,
        secured => match parameters(mail, host).await {
            Ok(parameters) if secured == Security::Tls => Tls::Wrapper(parameters),
            Ok(parameters) if secured == Security::StartTls => Tls::Required(parameters),
            Ok(parameters) => Tls::Opportunistic(parameters),
            Err(why) => return Attempt::later(why),
        },
    };
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host).port(port).tls(tls);
    builder = builder.timeout(Some(ANSWER_WITHIN)).hello_name(ClientId::Domain(name));
    if let Some(user) = &mail.user {
        let password = match &mail.password_file {
            None => String::new(),
            Some(file) => {
                let named = file.clone();
                let read = tokio::task::spawn_blocking(move || webhook::secret(&named)).await;
                match read.map_err(std::io::Error::other).flatten() {
                    Ok(secret) => String::from_utf8_lossy(&secret).into_owned(),
                    Err(error) => {
                        return Attempt::later(format!("its password {file} cannot be read: {error}"));
                    }
                }
            }
        };
        builder = builder.credentials(Credentials::new(user.clone(), password));
    }
    match builder.build().send(letter).await {
        Ok(_) => Attempt::Taken,
        Err(error) if error.is_permanent() => Attempt::Refused { why: told(&error) },
        Err(error) => Attempt::later(told(&error)),
    }
}

/// Whom to trust: those of the host, or those of `ca_file` alone.
async fn parameters(mail: &Mail, host: &str) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(host.to_owned());
    if let Some(path) = &mail.ca_file {
        builder = builder.certificate_store(CertificateStore::None);
        let file = path.clone();
        let read = tokio::task::spawn_blocking(move || certificates(&file)).await;
        let unusable = |error| format!("its certificates {} cannot be used: {error}", path.display());
        for certificate in read.map_err(std::io::Error::other).flatten().map_err(unusable)? {
            let certificate = Certificate::from_der(certificate.to_vec());
            builder =
                builder.add_root_certificate(certificate.map_err(|error| unusable(std::io::Error::other(error)))?);
        }
    }
    builder.build().map_err(|error| format!("TLS cannot be used: {}", told(&error)))
}

/// The certificates of a file in PEM; there is one at least.
fn certificates(path: &Path) -> std::io::Result<Vec<CertificateDer<'static>>> {
    let pem = small_file(path, MOST_CERTIFICATES)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let read = read.map_err(std::io::Error::other)?;
    if read.is_empty() { Err(std::io::Error::other("there is none in it")) } else { Ok(read) }
}

fn told(error: &lettre::transport::smtp::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let told = error.to_string();
    let told = line(&if told.contains(&cause) { told } else { format!("{told}{cause}") });
    let told: String = told.chars().take(300).collect();
    if is_distrust(error) {
        format!("{told}; it was told nothing. ca_file says whose certificates to trust")
    } else {
        told
    }
}

/// Whether the server is not who it should be, or nobody whom we trust says so.
fn is_distrust(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |cause| cause.source());
    let inner = |cause: &'_ (dyn std::error::Error + 'static)| {
        let tls = cause.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref::<rustls::Error>()?;
        Some(matches!(tls, rustls::Error::InvalidCertificate(_)))
    };
    causes.filter_map(inner).any(|distrusted| distrusted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(server: &str, user: Option<&str>, ca_file: Option<&str>) -> Mail {
        Mail {
            to: vec!["a@example.org".into()],
            from: "k@example.org".into(),
            server: server.into(),
            user: user.map(str::to_owned),
            password_file: None,
            ca_file: ca_file.map(Into::into),
            events: Vec::new(),
        }
    }

    #[test]
    fn a_password_goes_nowhere_but_through_tls_or_to_this_host() {
        let cases = [
            ("mail.example.org:587", Some("u"), None, Security::StartTls),
            ("mail.example.org:25", Some("u"), None, Security::StartTls),
            ("mail.example.org:25", None, None, Security::StartTlsIfOffered),
            ("mail.example.org:25", None, Some("/ca"), Security::StartTls),
            ("mail.example.org:465", None, None, Security::Tls),
            ("localhost.example.org:25", Some("u"), None, Security::StartTls),
            ("localhost:25", Some("u"), None, Security::None),
            ("localhost:25", Some("u"), Some("/ca"), Security::StartTls),
            ("localhost:465", None, Some("/ca"), Security::Tls),
            ("[::1]:25", None, None, Security::None),
            ("127.0.0.2:2525", None, None, Security::None),
        ];
        for (server, user, ca_file, wanted) in cases {
            assert_eq!(Security::of(&mail(server, user, ca_file)), wanted, "{server} {ca_file:?}");
        }
    }
}
