//! Expected values, most of them told by `systemd-analyze calendar` of systemd 252.

mod brute;
mod changes;

use jiff::tz::TimeZone;

use super::*;

pub(super) fn zone(name: &str) -> TimeZone {
    if name == "UTC" { TimeZone::UTC } else { TimeZone::get(name).unwrap() }
}

pub(super) fn utc(text: &str) -> Schedule {
    Schedule::parse(text, &TimeZone::UTC).unwrap()
}

pub(super) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// What comes after an instant, in UTC without seconds where they are zero.
pub(super) fn next(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
    let short = |at: Timestamp| {
        let text = at.to_string();
        text.strip_suffix(":00Z").or(text.strip_suffix('Z')).unwrap().to_owned()
    };
    schedule.after(at(after)).take(count).map(short).collect()
}

#[test]
fn expressions_mean_what_systemd_says() {
    // Expression, systemd's normalized form, and what follows on 2026-01-15T00:00:00Z, itself not counted.
    let table: [(&str, &str, &[&str]); 18] = [
        ("minutely", "*-*-* *:*:00", &["2026-01-15T00:01", "2026-01-15T00:02"]),
        ("hourly", "*-*-* *:00:00", &["2026-01-15T01:00", "2026-01-15T02:00"]),
        ("Daily", "*-*-* 00:00:00", &["2026-01-16T00:00", "2026-01-17T00:00"]),
        ("weekly", "Mon *-*-* 00:00:00", &["2026-01-19T00:00", "2026-01-26T00:00"]),
        ("monthly", "*-*-01 00:00:00", &["2026-02-01T00:00", "2026-03-01T00:00"]),
        ("quarterly", "*-01,04,07,10-01 00:00:00", &["2026-04-01T00:00", "2026-07-01T00:00"]),
        ("semiannually", "*-01,07-01 00:00:00", &["2026-07-01T00:00", "2027-01-01T00:00"]),
        ("yearly", "*-01-01 00:00:00", &["2027-01-01T00:00", "2028-01-01T00:00"]),
        ("Mon *-05~07/1", "Mon *-05~07/1 00:00:00", &["2026-05-25T00:00", "2027-05-31T00:00", "2028-05-29T00:00"]),
        ("*-02~03", "*-02~03 00:00:00", &["2026-02-26T00:00", "2027-02-26T00:00", "2028-02-27T00:00"]),
        ("*-*~01..03", "*-*~01..03 00:00:00", &["2026-01-29T00:00", "2026-01-30T00:00", "2026-01-31T00:00"]),
        (
            "Sat,Sun 12-05 08:05:40",
            "Sat,Sun *-12-05 08:05:40",
            &["2026-12-05T08:05:40", "2027-12-05T08:05:40", "2032-12-05T08:05:40"],
        ),
        ("*:0/15", "*-*-* *:00/15:00", &["2026-01-15T00:15", "2026-01-15T00:30"]),
        ("1/2:00", "*-*-* 01/2:00:00", &["2026-01-15T01:00", "2026-01-15T03:00"]),
        ("Mon..Fri", "Mon..Fri *-*-* 00:00:00", &["2026-01-16T00:00", "2026-01-19T00:00"]),
        ("*-*-1/7", "*-*-01/7 00:00:00", &["2026-01-22T00:00", "2026-01-29T00:00", "2026-02-01T00:00"]),
        ("03-05 2,1:23", "*-03-05 01,02:23:00", &["2026-03-05T01:23", "2026-03-05T02:23", "2027-03-05T01:23"]),
        ("26-02..03-01 7:0:5", "2026-02..03-01 07:00:05", &["2026-02-01T07:00:05", "2026-03-01T07:00:05"]),
    ];
    for (text, normalized, expected) in table {
        let schedule = utc(text);
        assert_eq!(schedule.to_string(), normalized, "{text}");
        assert_eq!(next(&schedule, "2026-01-15T00:00:00Z", expected.len()), expected, "{text}");
        // What is shown means the same.
        assert_eq!(utc(normalized), schedule, "{text}");
    }
}

#[test]
fn cron_means_what_cron_says() {
    let table: [(&str, &[&str]); 9] = [
        ("cron: 0 2 * * *", &["2026-01-15T02:00", "2026-01-16T02:00"]),
        ("cron:*/20 * * * *", &["2026-01-15T00:20", "2026-01-15T00:40"]),
        ("cron: 30 4 1,15 * *", &["2026-01-15T04:30", "2026-02-01T04:30"]),
        ("cron: 0 2 * * 1-5", &["2026-01-15T02:00", "2026-01-16T02:00", "2026-01-19T02:00"]),
        // Sunday is 0 and 7, and has a name.
        ("cron: 0 2 * * 0", &["2026-01-18T02:00"]),
        ("cron: 0 2 * * 7", &["2026-01-18T02:00"]),
        ("cron: 0 2 * mar-apr sun", &["2026-03-01T02:00", "2026-03-08T02:00"]),
        // Both days are given: either will do. Friday the 16th, Friday the 23rd, Friday the 30th, then the 13th.
        ("cron: 0 0 13 * 5", &["2026-01-16T00:00", "2026-01-23T00:00", "2026-01-30T00:00", "2026-02-06T00:00"]),
        ("cron: @weekly", &["2026-01-18T00:00"]),
    ];
    for (text, expected) in table {
        assert_eq!(next(&utc(text), "2026-01-15T00:00:00Z", expected.len()), expected, "{text}");
        assert_eq!(utc(&utc(text).to_string()), utc(text), "{text}");
    }
    // A day that begins with a star does not choose by itself: on the 1st, 3rd, … that are Fridays.
    assert_eq!(next(&utc("cron: 0 0 */2 * 5"), "2026-01-15T00:00:00Z", 2), ["2026-01-23T00:00", "2026-02-13T00:00"]);
}

#[test]
fn an_expression_may_name_its_zone() {
    let schedule = utc("Mon..Fri 02:30 Europe/Berlin");
    assert_eq!(schedule.to_string(), "Mon..Fri *-*-* 02:30:00 Europe/Berlin");
    assert_eq!(next(&schedule, "2026-01-15T00:00:00Z", 1), ["2026-01-15T01:30"]);
    assert_eq!(next(&schedule, "2026-07-15T00:00:00Z", 1), ["2026-07-15T00:30"]);
    let berlin = zone("Europe/Berlin");
    assert_eq!(Schedule::parse("02:30", &berlin).unwrap().to_string(), "*-*-* 02:30:00");
    assert_eq!(next(&Schedule::parse("02:30", &berlin).unwrap(), "2026-01-15T00:00:00Z", 1), ["2026-01-15T01:30"]);
    assert_eq!(next(&Schedule::parse("02:30 UTC", &berlin).unwrap(), "2026-01-15T00:00:00Z", 1), ["2026-01-15T02:30"]);
    assert_eq!(utc("daily Asia/Tokyo").to_string(), "*-*-* 00:00:00 Asia/Tokyo");
    assert_eq!(utc("cron: 0 2 * * 1-5 Asia/Tokyo").to_string(), "cron: 0 2 * * 1-5 Asia/Tokyo");
}

#[test]
fn leap_days_and_the_ends_of_months() {
    assert_eq!(next(&utc("*-02-29"), "2096-02-28T23:00:00Z", 2), ["2096-02-29T00:00", "2104-02-29T00:00"]);
    assert_eq!(next(&utc("*-02~01"), "2027-02-01T00:00:00Z", 2), ["2027-02-28T00:00", "2028-02-29T00:00"]);
    assert_eq!(next(&utc("*-*-31"), "2026-03-31T00:00:00Z", 2), ["2026-05-31T00:00", "2026-07-31T00:00"]);
    // All of a month, counted from its end, is all of a short one, too.
    assert_eq!(next(&utc("*-02~01..31"), "2026-01-31T00:00:00Z", 1), ["2026-02-01T00:00"]);
    assert_eq!(utc("*-02-30").next_after(at("2026-01-15T00:00:00Z")), None);
    assert_eq!(utc("2003-03-05").next_after(at("2026-01-15T00:00:00Z")), None);
}

#[test]
fn the_end_of_time_is_no_trouble() {
    for text in ["daily", "*-02-30", "*:*:*", "2199-12-31 23:59:59", "cron: 0 0 30 2 *"] {
        for after in [Timestamp::MIN, at("2199-12-31T23:59:58Z"), at("2199-12-31T23:59:59Z"), Timestamp::MAX] {
            let found = utc(text).next_after(after);
            assert!(found.is_none_or(|found| found > after), "{text}");
        }
    }
    assert_eq!(utc("daily").next_after(at("2199-12-31T23:59:59Z")), None);
    assert_eq!(next(&utc("daily"), "1969-12-31T12:00:00.5Z", 1), ["1970-01-01T00:00"]);
    assert_eq!(next(&utc("*:*:*"), "2026-01-15T00:00:00.5Z", 1), ["2026-01-15T00:00:01"]);
}

#[test]
fn errors_point_at_the_part_that_is_wrong() {
    for (text, wrong, says) in [
        ("", "", "nothing here"),
        ("   ", "   ", "nothing here"),
        ("Mox 02:30", "Mox", "day of the week"),
        ("Mon-Fri 02:30", "Mon-Fri", "Mon..Fri"),
        ("Sat..Mon 02:30", "Sat..Mon", "from Monday on"),
        ("Mon..Fri 24:30", "24", "0 to 23"),
        ("Mon..Fri 2:60", "60", "0 to 59"),
        ("Mon..Fri 2:", "", "missing"),
        ("*-13-01", "13", "1 to 12"),
        ("*-*-32", "32", "1 to 31"),
        ("*-*-00", "00", "1 to 31"),
        ("*-*~0", "0", "1 to 31"),
        ("02:30 Europe/Berlim", "Europe/Berlim", "time zone"),
        ("9..8:00", "9..8", "backwards"),
        ("*/2:00", "*/2", "0/2"),
        ("0/0:00", "0", "step"),
        ("*-*-1, 02:00", "", "missing"),
        ("Mon Tue 02:00", "Tue", "too many"),
        ("02:30:15.5", "15.5", "fraction"),
        ("1:2:3:4", "1:2:3:4", "HOUR:MINUTE"),
        ("1-2-3-4", "1-2-3-4", "three parts"),
        ("@1700000000", "@1700000000", "one instant"),
        ("Mon 5", "5", "5:00"),
        ("1969-01-01", "1969", "1970"),
        ("99999999-01-01", "99999999", "a year"),
        ("cron: 0 2 * *", " 0 2 * *", "five fields"),
        ("cron: 60 2 * * *", "60", "0 to 59"),
        ("cron: 0 2 * * 8", "8", "0 to 7"),
        ("cron: 0 2 * foo *", "foo", "a month"),
        ("cron: 5/10 * * * *", "5/10", "5-59/10"),
        ("cron: */0 * * * *", "*/0", "step"),
        ("cron: 0 0 9-2 * *", "9-2", "backwards"),
        ("cron: @reboot", "@reboot", "five fields"),
        ("täglich 02:30", "täglich", "day of the week"),
    ] {
        let error = Schedule::parse(text, &TimeZone::UTC).expect_err(text);
        assert_eq!(text.get(error.at.clone()), Some(wrong), "{text}: {error}");
        assert!(error.what.contains(says), "{text}: {error}");
    }
    let error = Schedule::parse("Mon 24:00", &TimeZone::UTC).unwrap_err();
    assert_eq!(error.pointed_at("Mon 24:00"), "Mon 24:00\n    ^^");
    assert!(Schedule::parse(&"1,".repeat(10_000), &TimeZone::UTC).unwrap_err().what.contains("512"));
}

#[test]
fn gaps_between_times() {
    let gaps = |text: &str| {
        let schedule = utc(text);
        let now = at("2026-01-15T00:00:00Z");
        let hours = |gap: Option<Duration>| gap.map(|gap| gap.as_secs() / 3600);
        (hours(schedule.longest_gap(now)), hours(schedule.mean_gap(now)))
    };
    assert_eq!(gaps("hourly"), (Some(1), Some(1)));
    assert_eq!(gaps("Mon..Fri 02:30"), (Some(72), Some(33)));
    assert_eq!(gaps("*-*-* 08,20:00"), (Some(12), Some(12)));
    assert_eq!(gaps("2026-02-01"), (None, None));
    assert_eq!(gaps("2020-02-01"), (None, None));
}
