//! The host's settings and who is told, out of tables.

use std::collections::HashSet;

use jiff::tz::TimeZone;

use keyframe_types::TimeToLive;

use super::decode::{SPAN, absolute, bandwidth, optional, secret_file, small, values};
use super::table::Table;
use crate::policy::{ApprovalRule, AskedFor, Healthchecks, Host, Mail, Notify, PolicyName, Webhook};

/// What a file says of the host counts instead of what files before it say, key by key.
pub(super) fn host(table: Table<'_, '_>, host: &mut Host) {
    if let Some(jobs) = small(table.number("jobs", 1..=1000)) {
        host.jobs = jobs;
    }
    if let Some(jobs) = small(table.number("jobs_per_disk", 1..=1000)) {
        host.jobs_per_disk = jobs;
    }
    if let Some(bandwidth) = bandwidth(&table) {
        host.bandwidth = Some(bandwidth);
    }
    if let Some(inner) = table.table("deadlines") {
        let deadlines = &mut host.deadlines;
        let spans = [
            ("snapshot", &mut deadlines.snapshot),
            ("backup", &mut deadlines.backup),
            ("drill", &mut deadlines.drill),
            ("other", &mut deadlines.other),
            ("cancel", &mut deadlines.cancel),
        ];
        for (key, span) in spans {
            if let Some(read) = inner.parsed::<TimeToLive>(key, SPAN) {
                *span = read.value.duration();
            }
        }
        inner.done();
    }
    if let Some(inner) = table.table("approval") {
        approval(inner, &mut host.approval);
    }
    let zone = table.parsed_by("time_zone", "one such as \"Europe/Berlin\" or \"UTC\"", |text| {
        let zone = if text == "UTC" { Ok(TimeZone::UTC) } else { TimeZone::get(text) };
        zone.map_err(|_| format!("{text:?} is not a time zone"))
    });
    if let Some(zone) = zone {
        host.time_zone = zone.value;
    }
    table.done();
}

fn approval(table: Table<'_, '_>, rule: &mut ApprovalRule) {
    let asked_for = table.parsed_list::<AskedFor>("asked_for", "\"delete\"");
    if let Some(read) = table.parsed::<TimeToLive>("valid", SPAN) {
        let valid = read.value.duration();
        if (ApprovalRule::SHORTEST..=ApprovalRule::LONGEST).contains(&valid) {
            rule.valid = valid;
        } else {
            let what = format!("{}.valid is out of range", table.path);
            table.source.error(&read.span, what, "write a span from \"1m\" to \"30d\"");
        }
    }
    if let Some(all) = asked_for {
        rule.asked_for = all.into_iter().map(|read| read.value).collect();
    }
    table.done();
}

pub(super) fn notify(table: Table<'_, '_>, notify: &mut Notify, known: &HashSet<&str>) {
    let url = |table: &Table<'_, '_>| {
        let read = optional(table.parsed_by("url", "an address that begins with https:// or http://", |text| {
            let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            let plain = rest.is_some_and(|rest| !rest.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()));
            if plain { Ok(text.to_owned()) } else { Err(format!("{text:?} is no address of the web")) }
        }));
        table.missing("url", "write the address, with https://");
        read
    };
    let policies = |table: &Table<'_, '_>| -> Vec<PolicyName> {
        let named = table.parsed_list::<PolicyName>("policies", "\"NAME\"").unwrap_or_default();
        for read in named.iter().filter(|read| !known.contains(read.value.as_str())) {
            let what = format!("{}.policies: there is no policy {}", table.path, read.value);
            table.source.error(&read.span, what, "name one that there is; take the list out for all");
        }
        values(Some(named))
    };
    for inner in table.tables("healthchecks") {
        let (url, policies) = (url(&inner), policies(&inner));
        notify.healthchecks.extend(url.map(|url| Healthchecks { url, policies }));
        inner.done();
    }
    for inner in table.tables("webhook") {
        let (url, policies) = (url(&inner), policies(&inner));
        let (secret_file, events) =
            (secret_file(&inner, "secret_file"), values(inner.parsed_list("events", "\"KIND\"")));
        notify.webhooks.extend(url.map(|url| Webhook { url, secret_file, events, policies }));
        inner.done();
    }
    for inner in table.tables("mail") {
        let address = |text: &str| -> bool {
            let fits = text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty());
            fits && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>' | b','))
        };
        let wanted = "an address such as \"admin@example.org\"";
        let refused = |text: &str| format!("{text:?} is no mail address");
        let to = values(inner.list("to", wanted, |text| {
            let error =
                || crate::CalendarError { at: 0..text.len(), what: format!("{}: write {wanted}", refused(text)) };
            address(text).then(|| text.to_owned()).ok_or_else(error)
        }));
        inner.missing("to", "say to whom: to = [\"admin@example.org\"]");
        let from =
            optional(inner.parsed_by("from", wanted, |text| {
                if address(text) { Ok(text.to_owned()) } else { Err(refused(text)) }
            }));
        inner.missing("from", &format!("write {wanted}"));
        let server = optional(inner.parsed_by("server", "HOST:PORT, such as \"mail.example.org:587\"", |text| {
            let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
            if matches!(port, Some(Ok(1..))) { Ok(text.to_owned()) } else { Err(format!("{text:?} is no server")) }
        }));
        inner.missing("server", "write HOST:PORT, such as \"mail.example.org:587\"");
        let user = optional(inner.text("user", "the user's name"));
        let (password_file, ca_file) = (secret_file(&inner, "password_file"), absolute(&inner, "ca_file"));
        let events = values(inner.parsed_list("events", "\"KIND\""));
        if let (Some(from), Some(server)) = (from, server) {
            notify.mail.push(Mail { to, from, server, user, password_file, ca_file, events });
        }
        inner.done();
    }
    table.done();
}
