//! The lines that the checker in the small guest prints: see `guest/checker`.

/// One heartbeat.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    /// Time since the checker's start by the guest's own clock, in milliseconds.
    pub uptime_ms: u64,
    /// Pages rewritten since the start.
    pub pages_rewritten: u64,
    /// The last write that each disk acknowledged, first disk first.
    pub sequences: Vec<u64>,
    /// The longest that the guest itself waited for a turn of the processor, in milliseconds.
    pub gap_ms: f64,
    /// The run of the program, drawn at its start: a machine that was booted again has another.
    pub token: String,
}

impl Heartbeat {
    /// Whether the guest was at an earlier point when it spoke than at `other`, by its clock or by its work. A QEMU
    /// that takes its own process back (`snapshot-load`) without KVM does not take the time-stamp counter back.
    /// Source: `cpu_get_ticks_locked` in QEMU's system/cpu-timers.c.
    pub fn is_before(&self, other: &Self) -> bool {
        self.uptime_ms < other.uptime_ms || self.pages_rewritten < other.pages_rewritten
    }

    /// Reads a line; nothing when it is another line, or one that the kernel wrote into.
    pub fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split_whitespace().collect();
        let ["T", uptime, "gen", pages, "seq", sequences, "gap_ms", gap, "token", token] = words[..] else {
            return None;
        };
        let numbers = || sequences.split(',').map(|number| number.parse().ok()).collect::<Option<Vec<_>>>();
        let is_token = token.len() == 16 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_token.then_some(Self {
            uptime_ms: uptime.parse().ok()?,
            pages_rewritten: pages.parse().ok()?,
            sequences: if sequences == "-" { Vec::new() } else { numbers()? },
            gap_ms: gap.parse().ok()?,
            token: token.to_owned(),
        })
    }
}

/// The first complaint in some lines of a log.
pub fn first_complaint(lines: &str) -> Option<&str> {
    lines.lines().find(|line| line.contains("CORRUPT")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_read() {
        let beat = Heartbeat::parse("T 1030 gen 204 seq 1,0 gap_ms 8.4 token c95ed56e92f3a96b\r").unwrap();
        assert_eq!((beat.uptime_ms, beat.pages_rewritten, &beat.sequences[..]), (1030, 204, &[1, 0][..]));
        let (younger, busier) =
            (Heartbeat { uptime_ms: 1029, ..beat.clone() }, Heartbeat { pages_rewritten: 205, ..beat.clone() });
        assert!(younger.is_before(&beat) && beat.is_before(&busier) && !busier.is_before(&beat));
        assert!((beat.gap_ms - 8.4).abs() < 1e-9);
        assert_eq!(beat.token, "c95ed56e92f3a96b");
    }

    #[test]
    fn a_machine_without_disks_beats_too() {
        let beat = Heartbeat::parse("T 1 gen 2 seq - gap_ms 0.0 token 0000000000000001").unwrap();
        assert!(beat.sequences.is_empty());
    }

    #[test]
    fn broken_lines_are_no_heartbeats() {
        for line in
            ["", "T", "T 1 gen 2 seq 1,x gap_ms 0.0 token 0000000000000001", "T 1 gen 2 seq 1 gap_ms 0.0 token 00"]
        {
            assert_eq!(Heartbeat::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_complaint_is_found_in_the_middle_of_a_line_too() {
        assert_eq!(
            first_complaint("OK passes 1\n[ 1.0] I/O errorCORRUPT disk vda\n"),
            Some("[ 1.0] I/O errorCORRUPT disk vda")
        );
        assert_eq!(first_complaint("OK passes 1\n"), None);
    }
}
