//! cron's five fields, read. Source: crontab(5).

use super::CalendarError;
use super::expression::{DayRule, Days, Expression, Field, Part};
use super::parse::{Parsed, WEEKDAYS, Word, number, take_zone, words};

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// Reads what is behind `cron:`; `offset` bytes go before it.
pub(super) fn parse(text: &str, offset: usize) -> Result<Parsed, CalendarError> {
    let mut fields = words(text, offset)?;
    let whole = offset..offset + text.len();
    let zone = take_zone(&mut fields, if text.trim_start().starts_with('@') { 1 } else { 5 })?;
    if let [word] = fields[..]
        && let Some(name) = word.text.strip_prefix('@')
    {
        let five = match name {
            "hourly" => "0 * * * *",
            "daily" | "midnight" => "0 0 * * *",
            "weekly" => "0 0 * * 0",
            "monthly" => "0 0 1 * *",
            "yearly" | "annually" => "0 0 1 1 *",
            _ => {
                return Err(CalendarError::new(
                    word.span(),
                    format!("{:?} is not known: write five fields", word.text),
                ));
            }
        };
        return Ok(Parsed { zone, ..parse(five, offset)? });
    }
    let [minute, hour, day, month, weekday] = fields[..] else {
        let what =
            format!("cron has five fields, minute, hour, day, month and day of the week; here are {}", fields.len());
        return Err(CalendarError::new(whole, what));
    };
    let shown = format!("cron: {} {} {} {} {}", minute.text, hour.text, day.text, month.text, weekday.text);
    // As in cron, a field that begins with a star does not choose days by itself.
    let either = !day.text.starts_with('*') && !weekday.text.starts_with('*');
    let sunday_based = field(weekday, "a day of the week", 0, 7, &|text| {
        let is = |name: &&str| text.eq_ignore_ascii_case(&name[..3]);
        WEEKDAYS.iter().position(is).map(|at| (u32::try_from(at).unwrap_or(0) + 1) % 7)
    })?;
    let bits = sunday_based.bits(0, 7);
    let weekdays = (0..7).filter(|at| bits & (1 << (at + 1)) != 0 || (*at == 6 && bits & 1 != 0));
    let expression = Expression {
        years: Field::default(),
        months: field(month, "a month", 1, 12, &|text| {
            let is = |name: &&str| text.eq_ignore_ascii_case(name);
            MONTHS.iter().position(is).and_then(|at| u32::try_from(at + 1).ok())
        })?
        .bits(1, 12),
        days: Days::FromStart(field(day, "a day", 1, 31, &|_| None)?),
        weekdays: weekdays.fold(0, |bits, at| bits | 1 << at),
        day_rule: if either { DayRule::Either } else { DayRule::Both },
        hours: field(hour, "an hour", 0, 23, &|_| None)?.bits(0, 23),
        minutes: field(minute, "a minute", 0, 59, &|_| None)?.bits(0, 59),
        seconds: 1,
    };
    Ok(Parsed { expression, shown, zone })
}

fn field(
    word: Word<'_>,
    what: &str,
    least: u32,
    most: u32,
    named: &dyn Fn(&str) -> Option<u32>,
) -> Result<Field, CalendarError> {
    let mut parts = Vec::new();
    for entry in word.split(",") {
        let wrong = |what: String| CalendarError::new(entry.span(), what);
        let (range, step) = match entry.split_once("/") {
            Some((range, step)) => (range, Some(step)),
            None => (entry, None),
        };
        let step = match step.map(|step| number(step).filter(|step| *step > 0).ok_or(step)) {
            None => None,
            Some(Ok(step)) => Some(step),
            Some(Err(step)) => {
                return Err(wrong(format!("{:?} is not a step: write a whole number from 1", step.text)));
            }
        };
        let value = |word: Word<'_>| {
            let value = number(word).or_else(|| named(word.text)).filter(|value| (least..=most).contains(value));
            let text = word.text;
            value.ok_or_else(|| {
                CalendarError::new(word.span(), format!("{text:?} is not {what}: write {least} to {most}, or *"))
            })
        };
        let (start, stop) = match range.split_once("-") {
            _ if range.text == "*" => (least, most),
            Some((start, stop)) => (value(start)?, value(stop)?),
            None if step.is_some() => {
                return Err(wrong(format!(
                    "crons differ about this: write {}-{most}/{}",
                    range.text,
                    step.unwrap_or(1)
                )));
            }
            None => (value(range)?, value(range)?),
        };
        if stop < start {
            return Err(wrong(format!("the range {:?} goes backwards", range.text)));
        }
        parts.push(Part { start, stop: Some(stop), step });
    }
    Ok(Field(parts))
}
