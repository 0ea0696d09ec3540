//! systemd's calendar expressions, read.

use std::ops::Range;

use jiff::tz::TimeZone;

use super::CalendarError;
use super::expression::{DayRule, Days, Expression, Field, Part, YEARS};

/// What a text says.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub expression: Expression,
    /// The normalized form, without the zone.
    pub shown: String,
    pub zone: Option<TimeZone>,
}

/// A piece of the text, and where in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word<'a> {
    pub text: &'a str,
    pub at: usize,
}

impl<'a> Word<'a> {
    pub(super) fn span(self) -> Range<usize> {
        self.at..self.at + self.text.len()
    }

    fn wrong(self, what: impl Into<String>) -> CalendarError {
        CalendarError::new(self.span(), what)
    }

    /// The pieces between separators.
    pub(super) fn split(self, separator: &'a str) -> impl Iterator<Item = Word<'a>> {
        let mut at = self.at;
        self.text.split(separator).map(move |text| {
            let word = Word { text, at };
            at += text.len() + separator.len();
            word
        })
    }

    /// What is before and behind a separator.
    pub(super) fn split_once(self, separator: &str) -> Option<(Word<'a>, Word<'a>)> {
        let (before, behind) = self.text.split_once(separator)?;
        let at = self.at + before.len() + separator.len();
        Some((Word { text: before, at: self.at }, Word { text: behind, at }))
    }

    fn begins_with_letter(self) -> bool {
        self.text.starts_with(|c: char| c.is_ascii_alphabetic())
    }
}

/// The most bytes an expression has.
const LONGEST: usize = 512;

/// The words of a text, of which `offset` bytes went before.
pub(crate) fn words(text: &str, offset: usize) -> Result<Vec<Word<'_>>, CalendarError> {
    if text.len() > LONGEST {
        return Err(CalendarError::new(
            offset..offset + text.len(),
            format!("this has more than {LONGEST} characters"),
        ));
    }
    let base = text.as_ptr() as usize;
    let words = text.split_ascii_whitespace();
    Ok(words.map(|word| Word { text: word, at: word.as_ptr() as usize - base + offset }).collect())
}

/// Takes a zone's name from the end.
pub(super) fn take_zone(words: &mut Vec<Word<'_>>, least: usize) -> Result<Option<TimeZone>, CalendarError> {
    let Some(&last) = words.last().filter(|word| words.len() > least && word.begins_with_letter()) else {
        return Ok(None);
    };
    if weekdays(last).is_ok() && !words.iter().any(|word| word.text.contains([':', '-', '~'])) {
        return Ok(None);
    }
    let zone = if last.text.eq_ignore_ascii_case("UTC") { Ok(TimeZone::UTC) } else { TimeZone::get(last.text) };
    let zone = zone.map_err(|_| {
        last.wrong(format!("{:?} is not a time zone: write one such as UTC or Europe/Berlin", last.text))
    })?;
    words.pop();
    Ok(Some(zone))
}

/// What the words for a whole expression stand for.
fn shorthand(word: &str) -> Option<&'static str> {
    Some(match word.to_ascii_lowercase().as_str() {
        "minutely" => "*-*-* *:*:00",
        "hourly" => "*-*-* *:00:00",
        "daily" => "*-*-* 00:00:00",
        "weekly" => "Mon *-*-* 00:00:00",
        "monthly" => "*-*-01 00:00:00",
        "quarterly" => "*-01,04,07,10-01 00:00:00",
        "semiannually" | "semi-annually" | "biannually" | "bi-annually" => "*-01,07-01 00:00:00",
        "yearly" | "annually" | "anually" => "*-01-01 00:00:00",
        _ => return None,
    })
}

/// Reads an expression.
pub(super) fn parse(text: &str) -> Result<Parsed, CalendarError> {
    let mut words = words(text, 0)?;
    let zone = take_zone(&mut words, 1)?;
    if let [word] = words[..] {
        if let Some(whole) = shorthand(word.text) {
            return Ok(Parsed { zone, ..parse(whole)? });
        }
        if word.text.starts_with('@') {
            return Err(word.wrong("a number of seconds names one instant only: write a date and a time"));
        }
    }
    let Some(&first) = words.first() else {
        return Err(CalendarError::new(
            0..text.len(),
            "there is nothing here: write for instance \"daily\" or \"Mon..Fri 02:30\"",
        ));
    };
    let time = match words.last() {
        Some(&last) if last.text.contains(':') => {
            words.pop();
            time(last)?
        }
        _ => Times { fields: [field_of(0), field_of(0), field_of(0)] },
    };
    let (mut expression, shown) = days(&words, first)?;
    let [hours, minutes, seconds] = &time.fields;
    expression.hours = hours.bits(0, 23);
    expression.minutes = minutes.bits(0, 59);
    expression.seconds = seconds.bits(0, 59);
    let clock = format!("{}:{}:{}", shown_field(hours, 2), shown_field(minutes, 2), shown_field(seconds, 2));
    Ok(Parsed { expression, shown: format!("{shown} {clock}"), zone })
}

/// Reads days of the week and a date, either of which may be missing; every day at midnight.
pub(crate) fn days(words: &[Word<'_>], near: Word<'_>) -> Result<(Expression, String), CalendarError> {
    let mut rest = words.iter().copied().peekable();
    let weekdays = match rest.peek() {
        Some(&word) if word.begins_with_letter() => {
            rest.next();
            self::weekdays(word)?
        }
        _ => 0x7f,
    };
    let (years, months, days) = match rest.peek() {
        Some(&word) if word.text.contains(['-', '~']) => {
            rest.next();
            date(word)?
        }
        _ => (Field::default(), Field::default(), Days::FromStart(Field::default())),
    };
    if let Some(word) = rest.next() {
        return Err(word.wrong(unexpected(word, near)));
    }
    let (separator, day) = match &days {
        Days::FromStart(field) => ('-', field),
        Days::FromEnd(field) => ('~', field),
    };
    let date = format!("{}-{}{separator}{}", shown_field(&years, 4), shown_field(&months, 2), shown_field(day, 2));
    let shown = if weekdays == 0x7f { date } else { format!("{} {date}", shown_weekdays(weekdays)) };
    let months = months.bits(1, 12);
    let (hours, minutes, seconds) = (1, 1, 1);
    Ok((Expression { years, months, days, weekdays, day_rule: DayRule::Both, hours, minutes, seconds }, shown))
}

fn unexpected(word: Word<'_>, near: Word<'_>) -> String {
    let text = word.text;
    if word.begins_with_letter() || text.starts_with(',') || near.text.ends_with(',') {
        format!(
            "{text:?} is one word too many: write lists without blanks, and days, date, time and zone in this order"
        )
    } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("{text:?} is neither a date nor a time: write an hour as {text}:00")
    } else {
        format!("{text:?} is neither a date, such as *-*-01, nor a time, such as 02:30")
    }
}

/// Names of the days from Monday.
pub(super) const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

fn weekday(word: Word<'_>) -> Result<u32, CalendarError> {
    let is = |name: &&str| word.text.eq_ignore_ascii_case(name) || word.text.eq_ignore_ascii_case(&name[..3]);
    let at = WEEKDAYS.iter().position(is).and_then(|at| u32::try_from(at).ok());
    at.ok_or_else(|| {
        let days = "write Mon, Tue, Wed, Thu, Fri, Sat or Sun, or one word such as hourly or daily";
        word.wrong(format!("{:?} is not a day of the week: {days}", word.text))
    })
}

fn weekdays(word: Word<'_>) -> Result<u8, CalendarError> {
    let mut bits = 0;
    for part in word.split(",") {
        let (from, to) = match part.split_once("..") {
            Some((from, to)) => (weekday(from)?, weekday(to)?),
            None if part.text.contains('-') => {
                return Err(part.wrong(format!("write a range of days as {}", part.text.replace('-', ".."))));
            }
            None => {
                let day = weekday(part)?;
                (day, day)
            }
        };
        if to < from {
            return Err(part.wrong("a range of days goes from Monday on: write for instance Sat,Sun,Mon"));
        }
        bits |= (from..=to).fold(0, |bits, day| bits | 1 << day);
    }
    Ok(bits)
}

fn date(word: Word<'_>) -> Result<(Field, Field, Days), CalendarError> {
    let (before, day) = match word.split_once("~") {
        Some((before, day)) => (Some(before), Days::FromEnd(field(day, "a day counted from the month's end", 1, 31)?)),
        None => match word.text.rfind('-') {
            Some(at) => {
                let day = Word { text: &word.text[at + 1..], at: word.at + at + 1 };
                (Some(Word { text: &word.text[..at], at: word.at }), Days::FromStart(field(day, "a day", 1, 31)?))
            }
            None => (None, Days::FromStart(Field::default())),
        },
    };
    let Some(before) = before else {
        return Err(word.wrong("a date is YEAR-MONTH-DAY or MONTH-DAY, such as *-*-01"));
    };
    match before.split_once("-") {
        Some((_, month)) if month.text.contains('-') => {
            Err(word.wrong("a date has three parts at most: YEAR-MONTH-DAY"))
        }
        Some((year, month)) => Ok((years(year)?, field(month, "a month", 1, 12)?, day)),
        None => Ok((Field::default(), field(before, "a month", 1, 12)?, day)),
    }
}

/// Years of two digits are from 1970 to 2069.
fn years(word: Word<'_>) -> Result<Field, CalendarError> {
    let whole = |year: u32| match year {
        0..70 => year + 2000,
        70..100 => year + 1900,
        year => year,
    };
    let Field(parts) = field(word, "a year", 0, *YEARS.end())?;
    let mut parts: Vec<Part> =
        parts.into_iter().map(|part| Part { start: whole(part.start), stop: part.stop.map(whole), ..part }).collect();
    let out = |part: &Part| part.start < *YEARS.start() || part.stop.is_some_and(|stop| stop < part.start);
    if parts.iter().any(out) {
        return Err(word.wrong("a year is from 1970 to 2199, and a range goes forward"));
    }
    parts.sort_unstable();
    Ok(Field(parts))
}

struct Times {
    fields: [Field; 3],
}

fn time(word: Word<'_>) -> Result<Times, CalendarError> {
    let parts: Vec<Word<'_>> = word.split(":").collect();
    let (hour, minute, second) = match parts[..] {
        [hour, minute] => (hour, minute, None),
        [hour, minute, second] => (hour, minute, Some(second)),
        _ => return Err(word.wrong("a time is HOUR:MINUTE or HOUR:MINUTE:SECOND")),
    };
    let second = second.map_or_else(|| Ok(field_of(0)), |second| field(second, "a second", 0, 59))?;
    Ok(Times { fields: [field(hour, "an hour", 0, 23)?, field(minute, "a minute", 0, 59)?, second] })
}

fn field_of(value: u32) -> Field {
    Field(vec![Part { start: value, stop: None, step: None }])
}

/// A list of values, ranges and steps.
fn field(word: Word<'_>, what: &str, least: u32, most: u32) -> Result<Field, CalendarError> {
    if word.text == "*" {
        return Ok(Field::default());
    }
    let mut parts = Vec::new();
    for entry in word.split(",") {
        parts.push(part(entry, what, least, most)?);
    }
    parts.sort_unstable();
    parts.dedup();
    Ok(Field(parts))
}

fn part(word: Word<'_>, what: &str, least: u32, most: u32) -> Result<Part, CalendarError> {
    let (range, step) = match word.split_once("/") {
        Some((range, step)) => (range, Some(step)),
        None => (word, None),
    };
    if range.text == "*" {
        return Err(word.wrong(match step {
            Some(step) => format!("systemd writes this as {least}/{}", step.text),
            None => "\"*\" stands alone, not in a list".to_owned(),
        }));
    }
    let step = match step.map(|step| (step, number(step))) {
        None => None,
        Some((_, Some(step))) if step > 0 => Some(step),
        Some((step, _)) => {
            return Err(step.wrong(format!("{:?} is not a step: write a whole number from 1", step.text)));
        }
    };
    let value = |word: Word<'_>| {
        let value = number(word).filter(|value| (least..=most).contains(value));
        value.ok_or_else(|| word.wrong(not_a(word.text, what, least, most)))
    };
    let (start, stop) = match range.split_once("..") {
        Some((start, stop)) => (value(start)?, Some(value(stop)?)),
        None => (value(range)?, None),
    };
    if stop.is_some_and(|stop| stop < start) {
        return Err(range.wrong(format!("the range {:?} goes backwards", range.text)));
    }
    // A range of one value is that value, whatever the step.
    if stop == Some(start) {
        return Ok(Part { start, stop: None, step: None });
    }
    Ok(Part { start, stop, step: step.filter(|step| stop.is_none() || *step != 1) })
}

fn not_a(text: &str, what: &str, least: u32, most: u32) -> String {
    if text.is_empty() {
        return format!("{what} is missing here");
    }
    let fraction =
        text.split_once('.').is_some_and(|(whole, _)| !whole.is_empty() && whole.bytes().all(|b| b.is_ascii_digit()));
    if what == "a second" && fraction {
        return format!("{text:?} is a fraction: schedules are in whole seconds");
    }
    format!("{text:?} is not {what}: write a whole number from {least} to {most}, or *")
}

pub(super) fn number(word: Word<'_>) -> Option<u32> {
    let digits = !word.text.is_empty() && word.text.len() <= 6 && word.text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { word.text.parse().ok() } else { None }
}

fn shown_field(field: &Field, width: usize) -> String {
    if field.0.is_empty() {
        return "*".to_owned();
    }
    let shown = |part: &Part| {
        let stop = part.stop.map_or_else(String::new, |stop| format!("..{stop:0width$}"));
        let step = part.step.filter(|step| part.stop.is_none() || *step != 1);
        format!("{:0width$}{stop}{}", part.start, step.map_or_else(String::new, |step| format!("/{step}")))
    };
    field.0.iter().map(shown).collect::<Vec<_>>().join(",")
}

fn shown_weekdays(bits: u8) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for day in (0..7).filter(|day| bits & 1 << day != 0) {
        match runs.last_mut() {
            Some((_, to)) if *to + 1 == day => *to = day,
            _ => runs.push((day, day)),
        }
    }
    let name = |day: usize| &WEEKDAYS[day][..3];
    let shown = |&(from, to): &(usize, usize)| match to - from {
        0 => name(from).to_owned(),
        1 => format!("{},{}", name(from), name(to)),
        _ => format!("{}..{}", name(from), name(to)),
    };
    runs.iter().map(shown).collect::<Vec<_>>().join(",")
}
