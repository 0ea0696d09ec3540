//! Nights on which clocks are changed.

use super::*;

fn of(zone_name: &str, text: &str, after: &str, count: usize) -> Vec<String> {
    next(&Schedule::parse(text, &zone(zone_name)).unwrap(), after, count)
}

#[test]
fn berlin_in_spring_makes_up_for_what_is_skipped_once() {
    // 02:00 becomes 03:00 on 29 March 2026, at 01:00 UTC.
    let night = |text: &str, count| of("Europe/Berlin", text, "2026-03-28T12:00:00Z", count);
    assert_eq!(night("02:30", 3), ["2026-03-29T01:00", "2026-03-30T00:30", "2026-03-31T00:30"]);
    assert_eq!(night("02:00", 2), ["2026-03-29T01:00", "2026-03-30T00:00"]);
    assert_eq!(night("02:15,45", 3), ["2026-03-29T01:00", "2026-03-30T00:15", "2026-03-30T00:45"]);
    // The skipped one and the one that is due there anyway are one.
    assert_eq!(night("02,03:00", 3), ["2026-03-29T01:00", "2026-03-30T00:00", "2026-03-30T01:00"]);
    assert_eq!(night("01:59", 2), ["2026-03-29T00:59", "2026-03-29T23:59"]);
    assert_eq!(night("cron: 30 2 * * *", 2), ["2026-03-29T01:00", "2026-03-30T00:30"]);
    let hours = of("Europe/Berlin", "hourly", "2026-03-29T00:00:00Z", 3);
    assert_eq!(hours, ["2026-03-29T01:00", "2026-03-29T02:00", "2026-03-29T03:00"]);
}

#[test]
fn berlin_in_autumn_does_nothing_twice_but_what_is_hourly() {
    // 03:00 becomes 02:00 on 25 October 2026, at 01:00 UTC: 02:30 is at 00:30 and at 01:30 UTC.
    let night = |text: &str, count| of("Europe/Berlin", text, "2026-10-24T12:00:00Z", count);
    assert_eq!(night("02:30", 2), ["2026-10-25T00:30", "2026-10-26T01:30"]);
    assert_eq!(night("03:00", 2), ["2026-10-25T02:00", "2026-10-26T02:00"]);
    assert_eq!(of("Europe/Berlin", "02:30", "2026-10-25T00:30:00Z", 1), ["2026-10-26T01:30"]);
    assert_eq!(of("Europe/Berlin", "02:30", "2026-10-25T01:15:00Z", 1), ["2026-10-26T01:30"]);
    let hours = of("Europe/Berlin", "hourly", "2026-10-24T23:30:00Z", 4);
    assert_eq!(hours, ["2026-10-25T00:00", "2026-10-25T01:00", "2026-10-25T02:00", "2026-10-25T03:00"]);
    let quarters = of("Europe/Berlin", "*:0/30", "2026-10-25T00:30:00Z", 3);
    assert_eq!(quarters, ["2026-10-25T01:00", "2026-10-25T01:30", "2026-10-25T02:00"]);
}

#[test]
fn new_york_in_both_directions() {
    // 02:00 becomes 03:00 on 8 March 2026 at 07:00 UTC; 02:00 becomes 01:00 on 1 November at 06:00 UTC.
    assert_eq!(of("America/New_York", "02:30", "2026-03-07T12:00:00Z", 2), ["2026-03-08T07:00", "2026-03-09T06:30"]);
    assert_eq!(of("America/New_York", "01:30", "2026-10-31T12:00:00Z", 2), ["2026-11-01T05:30", "2026-11-02T06:30"]);
    assert_eq!(
        of("America/New_York", "hourly", "2026-11-01T04:30:00Z", 3),
        ["2026-11-01T05:00", "2026-11-01T06:00", "2026-11-01T07:00"]
    );
}

#[test]
fn lord_howe_changes_by_half_an_hour() {
    // 02:00 becomes 02:30 on 4 October 2026, at 15:30 UTC of the 3rd; 02:00 becomes 01:30 on 5 April, at 15:00 UTC of the 4th.
    let zone = "Australia/Lord_Howe";
    assert_eq!(of(zone, "02:15", "2026-10-02T18:00:00Z", 2), ["2026-10-03T15:30", "2026-10-04T15:15"]);
    assert_eq!(of(zone, "02:30", "2026-10-02T18:00:00Z", 1), ["2026-10-03T15:30"]);
    assert_eq!(of(zone, "01:45", "2026-04-04T00:00:00Z", 2), ["2026-04-04T14:45", "2026-04-05T15:15"]);
    assert_eq!(of(zone, "*:00", "2026-04-04T14:30:00Z", 2), ["2026-04-04T15:30", "2026-04-04T16:30"]);
}

#[test]
fn a_day_that_never_was_and_midnights_that_are_skipped() {
    // Samoa went from 29 to 31 December 2011, at 10:00 UTC of the 30th.
    assert_eq!(of("Pacific/Apia", "12:00", "2011-12-29T23:00:00Z", 2), ["2011-12-30T10:00", "2011-12-30T22:00"]);
    // In Havana 00:00 becomes 01:00 on 8 March 2026, at 05:00 UTC.
    assert_eq!(of("America/Havana", "daily", "2026-03-07T12:00:00Z", 2), ["2026-03-08T05:00", "2026-03-09T04:00"]);
}
