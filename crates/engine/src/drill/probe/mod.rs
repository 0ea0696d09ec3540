//! Asking a machine whether it works: each probe looks again and again until it is satisfied or time is up.
//!
//! All are asked in turn by one thread, as a machine has one monitor and one agent; no look takes longer than
//! [`LOOK_PATIENCE`]. When a probe is satisfied, that is kept: a machine that has answered once came back.

mod agent;
mod command;
mod life;
mod screen;
mod serial;
mod tcp;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use keyframe_hypervisor::ProbeDefinition;
use regex::{Regex, RegexBuilder};

use crate::context::Context;
use crate::drill::record::Check;
use crate::drill::throwaway::Throwaway;
use crate::error::Error;
use crate::space;

/// The longest that one look may take.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);
/// A look that begins in time may take so much longer: cut off in the middle, it would only tell of that.
const LAST_LOOK_PATIENCE: Duration = Duration::from_millis(500);
/// Between two rounds.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(20);
/// The largest compiled regular expression, in bytes.
const REGEX_BYTES: usize = 1 << 20;
/// The most of a guest's words that a report repeats, in characters.
const QUOTED: usize = 120;

/// The longest that is told of a look, in characters.
const LONGEST_SEEN: usize = 500;

/// What a look came to.
#[derive(Debug)]
enum Look {
    /// It is as it should be; what was seen.
    Passed(String),
    /// It is not, so far; what was seen instead.
    NotYet(String),
}

/// Something that can be asked of a machine.
trait Probe {
    /// As a report names it.
    fn name(&self) -> String;

    /// Looks once, until `by` at the latest. Trouble with looking is a look at trouble, and no error.
    fn look(&mut self, machine: &mut Throwaway, by: Instant) -> Look;
}

/// What a machine is asked.
pub(crate) struct Probes(Vec<Box<dyn Probe>>);

impl Probes {
    /// Those that are declared; where none is, that the guest shows life.
    ///
    /// # Errors
    /// [`Error::BadProbe`].
    pub(crate) fn of(declared: &[ProbeDefinition]) -> Result<Self, Error> {
        if declared.is_empty() {
            return Ok(Self(vec![Box::<life::Life>::default()]));
        }
        let address = guest_address(declared)?;
        declared.iter().map(|declared| built(declared, address)).collect::<Result<_, _>>().map(Self)
    }
}

/// The address that the guest has in its private network, where a probe says one: a network has room for one guest.
///
/// # Errors
/// [`Error::BadRequest`] when probes name several.
pub(crate) fn guest_address(declared: &[ProbeDefinition]) -> Result<Option<Ipv4Addr>, Error> {
    let named = declared.iter().filter_map(|probe| match probe {
        ProbeDefinition::Tcp { address, .. } => *address,
        _ => None,
    });
    let mut addresses: Vec<Ipv4Addr> = named.collect();
    addresses.sort_unstable();
    addresses.dedup();
    match addresses[..] {
        [] => Ok(None),
        [address] => Ok(Some(address)),
        _ => Err(Error::BadRequest { what: "all tcp probes of a machine name one address of the guest".to_owned() }),
    }
}

fn built(declared: &ProbeDefinition, address: Option<Ipv4Addr>) -> Result<Box<dyn Probe>, Error> {
    let bad = |reason: String| Error::BadProbe { probe: declared.to_string(), reason };
    declared.check().map_err(|error| bad(error.to_string()))?;
    let pattern = |text: &String| compiled(text).map_err(|error| bad(error.to_string()));
    Ok(match declared {
        ProbeDefinition::Agent {} => Box::new(agent::AgentAnswers),
        ProbeDefinition::Screen {} => Box::new(screen::ScreenShows),
        ProbeDefinition::Serial { regex, send } => Box::new(serial::SerialSays::new(pattern(regex)?, send.clone())),
        ProbeDefinition::Tcp { port, .. } => Box::new(tcp::PortAccepts::new(*port, address)),
        ProbeDefinition::Command { run, status, output } => {
            let output = output.as_ref().map(pattern).transpose()?;
            Box::new(command::CommandEnds::new(run, *status, output))
        }
    })
}

fn compiled(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).multi_line(true).crlf(true).size_limit(REGEX_BYTES).dfa_size_limit(REGEX_BYTES).build()
}

/// Asks everything until all is as it should be, the machine is gone, or it is `deadline`.
///
/// # Errors
/// [`Error::Interrupted`]; [`Error::NoSpace`] when the guest's writes are about to fill the file system.
pub(crate) fn ask_all(
    ctx: &Context<'_>,
    machine: &mut Throwaway,
    probes: Probes,
    deadline: Instant,
) -> Result<Vec<Check>, Error> {
    let unasked = |probe: &dyn Probe| Check {
        name: probe.name(),
        passed: false,
        after_ms: None,
        seen: "nobody came to ask".to_owned(),
    };
    let mut probes = probes.0;
    let mut checks: Vec<Check> = probes.iter().map(|probe| unasked(probe.as_ref())).collect();
    let ended = loop {
        for (probe, check) in probes.iter_mut().zip(&mut checks).filter(|(_, check)| !check.passed) {
            ctx.check()?;
            let by = (deadline + LAST_LOOK_PATIENCE).min(Instant::now() + LOOK_PATIENCE);
            match probe.look(machine, by) {
                Look::Passed(seen) if Instant::now() > deadline => check.seen = plain(&format!("too late: {seen}")),
                Look::Passed(seen) => {
                    let after_ms = Some(super::ms(machine.begun.elapsed()));
                    *check = Check { passed: true, after_ms, seen: plain(&seen), ..check.clone() };
                }
                Look::NotYet(seen) => check.seen = plain(&seen),
            }
        }
        space::check(ctx.home.root(), keyframe_types::ByteLen::ZERO)?;
        let ending = machine.ending();
        if ending.is_some() || checks.iter().all(|check| check.passed) || Instant::now() >= deadline {
            break ending;
        }
        std::thread::sleep(BETWEEN_ROUNDS);
    };
    checks.push(Check {
        name: "runs on".to_owned(),
        passed: ended.is_none(),
        after_ms: ended.is_none().then(|| super::ms(machine.begun.elapsed())),
        seen: ended.unwrap_or_else(|| "its processors run".to_owned()),
    });
    Ok(checks)
}

/// The end of what a guest said, as a report repeats it.
fn quoted(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let mut last: Vec<char> = text.trim_end().chars().rev().take(QUOTED).collect();
    last.reverse();
    plain(&last.into_iter().collect::<String>())
}

/// What was seen in one line of bounded length, without what a terminal would act on: most of it are a guest's words, those
/// of its agent's errors, too.
fn plain(text: &str) -> String {
    text.chars().take(LONGEST_SEEN).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_cannot_be_asked_is_refused_before_anything_happens() {
        for text in ["serial=(", "serial=a{1000}{1000}{1000}"] {
            let declared: ProbeDefinition = text.parse().unwrap();
            assert!(matches!(Probes::of(&[declared]), Err(Error::BadProbe { .. })), "{text}");
        }
        assert_eq!(Probes::of(&[]).unwrap().0.len(), 1, "without any, life is asked for");
    }

    #[test]
    fn a_guest_has_one_address() {
        let probes =
            |texts: &[&str]| -> Vec<ProbeDefinition> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        assert_eq!(guest_address(&probes(&["agent", "tcp=22"])).unwrap(), None);
        let two = probes(&["tcp=443", "tcp=192.168.1.5:22", "tcp=192.168.1.5:80"]);
        assert_eq!(guest_address(&two).unwrap(), Some(Ipv4Addr::new(192, 168, 1, 5)));
        let names: Vec<String> = Probes::of(&two).unwrap().0.iter().map(|probe| probe.name()).collect();
        assert_eq!(names[0], "tcp 192.168.1.5:443", "what one probe says of the guest goes for all");
        assert!(guest_address(&probes(&["tcp=192.168.1.5:22", "tcp=192.168.1.6:22"])).is_err());
    }

    #[test]
    fn lines_end_where_a_serial_console_ends_them() {
        let pattern = compiled("^login: $").unwrap();
        assert!(pattern.is_match("boot\r\nlogin: \r\n") && !pattern.is_match("last login: x"));
    }

    #[test]
    fn a_guests_words_are_repeated_without_what_a_terminal_acts_on() {
        assert_eq!(quoted(b"\x1b[2Jhello\r\nworld\n"), " [2Jhello  world");
        assert_eq!(quoted("ä".repeat(999).as_bytes()).chars().count(), QUOTED);
    }
}
