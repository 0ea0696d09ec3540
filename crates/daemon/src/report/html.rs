//! A report as one page that needs nothing else, on a screen and on paper. Whatever comes from machines or people is text.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use keyframe_types::text::{html as safe, span};

use super::machine::{Drill, Exception, Gap, MachineReport, Made};
use super::sources::LogState;
use super::{Kept, Report};

/// The most exceptions and drills of a machine on the page; all are in the JSON.
const MOST_ROWS: usize = 200;

const STYLE: &str = "\
:root{--ink:#1c2024;--soft:#5b6570;--line:#d8dde3;--pale:#f4f6f8;--good:#1a7f4b;--bad:#b3261e;--warn:#8a5a00}\
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:#fff;max-width:72rem;margin:2rem auto;\
padding:0 1.25rem}h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.5rem 0 .75rem;border-bottom:2px solid var(--ink);\
padding-bottom:.25rem}h3{font-size:1.05rem;margin:2rem 0 .5rem;overflow-wrap:anywhere}p{margin:.4rem 0}.soft{color:var(--soft)}\
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.75rem;margin:1.5rem 0}.tile{border:1px solid var(--line);\
border-radius:.5rem;padding:.7rem .9rem}.tile b{display:block;font-size:1.5rem;line-height:1.2}.good{color:var(--good)}.bad{color:var(--bad)}\
.warn{color:var(--warn)}table{border-collapse:collapse;width:100%;margin:.5rem 0 1rem}th,td{text-align:left;vertical-align:top;\
padding:.35rem .6rem;border-bottom:1px solid var(--line);overflow-wrap:anywhere}thead th{background:var(--pale);font-weight:600}\
th,td.k{overflow-wrap:normal}tbody th{white-space:nowrap;width:1%}td.n,th.n{text-align:right}td.n,td.t{white-space:nowrap;\
font-variant-numeric:tabular-nums}td.b{min-width:10em}td.mono{min-width:8em}.m th:first-child{width:15%}.m th:nth-child(3){width:36%}.m th:last-child{width:22%}\
.mono{font-family:ui-monospace,monospace;font-size:.85em;overflow-wrap:anywhere}ul{margin:0;padding-left:1.1rem}\
@media print{@page{margin:16mm 14mm}body{font-size:9.5pt;max-width:none;margin:0;padding:0}h2,h2+p,h3{break-after:avoid}\
tr,.tile{break-inside:avoid}thead{display:table-header-group}.tiles{grid-template-columns:repeat(3,1fr)}\
th,td{padding:.3rem .45rem}}";

/// A page in the making; a string takes everything.
struct Page {
    html: String,
    zone: TimeZone,
}

macro_rules! put {
    ($page:expr, $($format:tt)*) => { let _ = write!($page.html, $($format)*); };
}

impl Page {
    fn time(&self, at: Timestamp) -> String {
        at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M").to_string()
    }

    fn maybe(&self, at: Option<Timestamp>) -> String {
        at.map_or_else(|| "–".to_owned(), |at| self.time(at))
    }
}

/// The page. `json_sha256` names the document that it shows, which is the one that is signed.
#[must_use]
pub fn page(report: &Report, json_sha256: &str) -> String {
    let mut page = Page { html: String::new(), zone: report.period.time_zone.clone() };
    head(&mut page, report);
    tiles(&mut page, report);
    notes(&mut page, report);
    overview(&mut page, report);
    exceptions(&mut page, report);
    page.html.push_str("<h2>Machines</h2>");
    for machine in &report.machines {
        one_machine(&mut page, machine);
    }
    mapping(&mut page, report);
    foundations(&mut page, report, json_sha256);
    page.html.push_str("</body></html>\n");
    page.html
}

fn head(page: &mut Page, report: &Report) {
    let (from, to) = (page.time(report.period.from), page.time(report.until));
    let zone = safe(&keyframe_policy::zone_name(&page.zone));
    let host = safe(&report.host);
    put!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Snapshots, backups and drills on {host}, {from} to {to}</title><style>{STYLE}</style></head><body>\
         <h1>Snapshots, backups and drills</h1><p>on <b>{host}</b>, from <b>{from}</b> until <b>{to}</b></p>\
         <p class=\"soft\">Times are in {zone}. Made {} by Keyframe {}.</p>",
        page.time(report.made),
        safe(report.keyframe)
    );
}

fn tiles(page: &mut Page, report: &Report) {
    let totals = &report.totals;
    let tone = |bad: usize| if bad == 0 { "good" } else { "bad" };
    let measured = |kept: &Kept| format!("{} of {}", kept.kept, kept.kept + kept.missed + kept.not_measured);
    let tiles = [
        (
            format!("{} of {}", totals.with_policy, totals.with_policy + totals.without_policy),
            "machines with a policy",
            tone(totals.without_policy),
        ),
        (totals.points.to_string(), "points made, with nothing missing", ""),
        (totals.points_incomplete.to_string(), "points in which something is missing", tone(totals.points_incomplete)),
        (totals.snapshots.to_string(), "snapshots made", ""),
        (
            format!("{} of {}", totals.drills_passed, totals.drills_passed + totals.drills_failed),
            "drills passed",
            tone(totals.drills_failed),
        ),
        (measured(&totals.rpo), "machines kept their RPO", tone(totals.rpo.missed + totals.rpo.not_measured)),
        (measured(&totals.rto), "machines kept their RTO", tone(totals.rto.missed + totals.rto.not_measured)),
        (totals.exceptions.to_string(), "exceptions", ""),
        (totals.exceptions_open.to_string(), "exceptions open", tone(totals.exceptions_open)),
    ];
    page.html.push_str("<div class=\"tiles\">");
    for (value, what, tone) in tiles {
        put!(page, "<div class=\"tile\"><b class=\"{tone}\">{value}</b>{what}</div>");
    }
    page.html.push_str("</div>");
}

fn notes(page: &mut Page, report: &Report) {
    for note in &report.notes {
        put!(page, "<p class=\"warn\">{}</p>", safe(note));
    }
}

fn objective(kept: Option<bool>, promised: Option<u64>, measured: Option<u64>) -> String {
    let word = match (promised, kept) {
        (None, _) => return measured.map_or_else(|| "–".to_owned(), span),
        (Some(_), None) => "<b class=\"warn\">not measured</b>",
        (Some(_), Some(true)) => "<b class=\"good\">kept</b>",
        (Some(_), Some(false)) => "<b class=\"bad\">missed</b>",
    };
    let of = promised.map(|promised| format!(" of {}", span(promised))).unwrap_or_default();
    format!("{word} {}{of}", measured.map_or_else(|| "–".to_owned(), span))
}

fn longest_drill(machine: &MachineReport) -> Option<u64> {
    machine.drills.iter().filter_map(|drill| drill.took_ms).max().map(|ms| ms.div_ceil(1000))
}

fn rpo(machine: &MachineReport) -> String {
    objective(machine.rpo_kept(), machine.rpo_s, machine.longest_gap.map(|gap| gap.seconds))
}

fn rto(machine: &MachineReport) -> String {
    objective(machine.rto_kept(), machine.rto_s, longest_drill(machine))
}

fn overview(page: &mut Page, report: &Report) {
    page.html.push_str(
        "<h2>Overview</h2><p class=\"soft\">RPO: the longest time in which nothing newer was saved, against what is promised. RTO: the longest \
         that a drill took, against what is promised.</p><table><thead><tr><th>Machine<th>Policy<th class=\"n\">Points\
         <th class=\"n\">Snapshots<th>RPO<th>RTO<th>Drills<th class=\"n\">Open</tr></thead><tbody>",
    );
    for machine in &report.machines {
        let passed = machine.drills.iter().filter(|drill| drill.passed).count();
        let open = machine.exceptions.iter().filter(|exception| exception.settled.is_none()).count();
        put!(
            page,
            "<tr><td>{}<td>{}<td class=\"n\">{}<td class=\"n\">{}<td class=\"k\">{}<td class=\"k\">{}<td class=\"k\">{passed} of {}\
             <td class=\"n\">{open}</tr>",
            safe(&machine.name),
            policy(machine),
            machine.points.made.count,
            machine.snapshots.count,
            rpo(machine),
            rto(machine),
            machine.drills.len()
        );
    }
    page.html.push_str("</tbody></table>");
}

fn policy(machine: &MachineReport) -> String {
    match (&machine.policy, machine.present) {
        (Some(policy), _) => safe(policy),
        (None, true) => "<b class=\"bad\">none</b>".to_owned(),
        (None, false) => "<span class=\"soft\">the machine is gone</span>".to_owned(),
    }
}

fn exceptions(page: &mut Page, report: &Report) {
    page.html.push_str("<h2>Exceptions</h2>");
    let all: Vec<(&MachineReport, &Exception)> =
        report.machines.iter().flat_map(|machine| machine.exceptions.iter().map(move |one| (machine, one))).collect();
    if all.is_empty() {
        page.html.push_str("<p>There was none.</p>");
        return;
    }
    let open = all.iter().filter(|(_, exception)| exception.settled.is_none());
    page.html.push_str("<h3>Open</h3>");
    if report.totals.exceptions_open == 0 {
        page.html.push_str("<p>None: each was settled, as is told with its machine.</p>");
        return;
    }
    page.html.push_str("<table><thead><tr><th>Since<th>Machine<th>Kind<th>What</tr></thead><tbody>");
    for (machine, exception) in open.take(MOST_ROWS) {
        put!(
            page,
            "<tr><td class=\"t\">{}<td>{}<td class=\"k\">{}<td>{}</tr>",
            page.time(exception.at),
            safe(&machine.name),
            exception.kind.as_str(),
            safe(&exception.what)
        );
    }
    page.html.push_str("</tbody></table>");
    more(page, report.totals.exceptions_open);
}

fn more(page: &mut Page, all: usize) {
    if all > MOST_ROWS {
        put!(page, "<p class=\"soft\">and {} more: all are in report.json</p>", all - MOST_ROWS);
    }
}

fn made(page: &Page, made: &Made) -> String {
    match made.count {
        0 => "none".to_owned(),
        count => format!("{count}, from {} to {}", page.maybe(made.first), page.maybe(made.last)),
    }
}

fn one_machine(page: &mut Page, machine: &MachineReport) {
    put!(page, "<h3>{}</h3><table><tbody>", safe(&machine.name));
    let mut rows = vec![("Policy", policy(machine))];
    let points = &machine.points;
    let by: Vec<String> = points.by_backup.iter().map(|(name, count)| format!("{} {count}", safe(name))).collect();
    let by = if by.is_empty() { String::new() } else { format!(" ({})", by.join(", ")) };
    let beside = match (points.incomplete, points.drilled) {
        (0, 0) => String::new(),
        (incomplete, drilled) => {
            format!("; besides them {incomplete} incomplete; {drilled} brought back by a drill")
        }
    };
    rows.push(("Points", format!("{}{by}{beside}", made(page, &points.made))));
    for to in &machine.destinations {
        let key = if to.key_file { "a key file is named" } else { "no key file is named" };
        let lock = if to.lock_days > 0 { format!("locked for {} days", to.lock_days) } else { "not locked".to_owned() };
        rows.push((
            "goes to",
            format!("{}: <span class=\"mono\">{}</span>; {key}; {lock}", safe(&to.backup), safe(&to.repository)),
        ));
    }
    rows.push(("Snapshots", made(page, &machine.snapshots)));
    for promise in &machine.promises {
        let kept = objective(promise.kept(), promise.rpo_s, promise.longest_gap.map(|gap| gap.seconds));
        let by = promise
            .backup
            .as_ref()
            .map_or_else(|| machine.saved_by.to_owned(), |name| format!("backup {}", safe(name)));
        rows.push(("RPO", format!("{kept}{}", longest(page, promise.longest_gap, &by))));
    }
    if machine.promises.is_empty() {
        rows.push(("RPO", rpo(machine)));
    }
    rows.push(("RTO", rto(machine)));
    let jobs = &machine.jobs;
    rows.push((
        "Jobs",
        format!(
            "{} done, {} incomplete, {} failed, {} cancelled; {} needed more than one attempt",
            jobs.done, jobs.incomplete, jobs.failed, jobs.cancelled, jobs.retried
        ),
    ));
    for (name, value) in rows {
        put!(page, "<tr><th>{name}<td>{value}</tr>");
    }
    page.html.push_str("</tbody></table>");
    drills(page, &machine.drills);
    machine_exceptions(page, &machine.exceptions);
}

fn longest(page: &Page, gap: Option<Gap>, saved_by: &str) -> String {
    let Some(gap) = gap else { return String::new() };
    let end = if gap.ended { "" } else { ", and not over then" };
    format!(" – by {saved_by}, from {} until {}{end}", page.time(gap.from), page.time(gap.until))
}

fn drills(page: &mut Page, drills: &[Drill]) {
    if drills.is_empty() {
        page.html.push_str("<p>No drill was held.</p>");
        return;
    }
    page.html.push_str(
        "<table><thead><tr><th>Drill<th>Of<th>Outcome<th class=\"n\">Back after<th>Seen<th>Evidence</tr></thead><tbody>",
    );
    for drill in drills.iter().take(MOST_ROWS) {
        let outcome = if drill.passed { "<b class=\"good\">passed</b>" } else { "<b class=\"bad\">failed</b>" };
        let late = if drill.within_rto == Some(false) { " <b class=\"bad\">late</b>" } else { "" };
        let took = drill.took_ms.map_or_else(|| "–".to_owned(), |ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100));
        let log = if drill.signed { "signed log" } else { "not in the signed log" };
        put!(
            page,
            "<tr><td class=\"t\">{}<td class=\"mono\">{}<td class=\"k\">{outcome}{late}<td class=\"n\">{took}<td>{}<td class=\"b\">\
             <span class=\"mono\">{}</span> {log}</tr>",
            page.time(drill.at),
            safe(&drill.of),
            safe(&drill.what),
            safe(&drill.evidence)
        );
    }
    page.html.push_str("</tbody></table>");
    more(page, drills.len());
}

fn machine_exceptions(page: &mut Page, exceptions: &[Exception]) {
    if exceptions.is_empty() {
        page.html.push_str("<p>No exception.</p>");
        return;
    }
    page.html.push_str("<table><thead><tr><th>Since<th>Exception<th>What<th>What became of it</tr></thead><tbody>");
    for exception in exceptions.iter().take(MOST_ROWS) {
        let became = match &exception.settled {
            Some(settled) => format!("settled {} by {}", page.time(settled.at), safe(&settled.by)),
            None => "<b class=\"bad\">open</b>".to_owned(),
        };
        put!(
            page,
            "<tr><td class=\"t\">{}<td class=\"k\">{}<td>{}<td class=\"b\">{became}</tr>",
            page.time(exception.at),
            exception.kind.as_str(),
            safe(&exception.what)
        );
    }
    page.html.push_str("</tbody></table>");
    more(page, exceptions.len());
}

fn mapping(page: &mut Page, report: &Report) {
    page.html.push_str(
        "<h2>What this says to what standards ask</h2><p>This is no certification and claims no more than was measured: it names the measured \
         facts that speak to a clause, and what the clause asks besides that nothing here measures. The texts of the standards count, not \
         their summaries here.</p><table class=\"m\"><thead><tr><th>Clause<th>Asks, in short<th>Measured here<th>Not measured here</tr></thead><tbody>",
    );
    for clause in &report.mapping {
        put!(
            page,
            "<tr><td class=\"k\">{}<br><b>{}</b><td class=\"k\">{}<td><ul>",
            safe(clause.standard),
            safe(clause.clause),
            safe(clause.asks)
        );
        for fact in &clause.facts {
            put!(page, "<li>{}</li>", safe(fact));
        }
        put!(page, "</ul><td>{}</tr>", safe(clause.not_measured));
    }
    page.html.push_str("</tbody></table>");
}

fn log(page: &mut Page, name: &str, log: &LogState) {
    let state = match (log.entries, log.is_sound()) {
        (0, _) => "no entry".to_owned(),
        (entries, true) => format!("{entries} entries, <b class=\"good\">each as it was written</b>"),
        (entries, false) => format!("{entries} entries, <b class=\"bad\">changed or damaged</b>"),
    };
    let head = log.head.as_deref().map(|head| format!("<br>last entry <span class=\"mono\">{}</span>", safe(head)));
    put!(page, "<tr><th>{name}<td>{state}{}", head.unwrap_or_default());
    for flaw in &log.flaws {
        put!(page, "<br>{}", safe(flaw));
    }
    page.html.push_str("</tr>");
}

fn foundations(page: &mut Page, report: &Report, json_sha256: &str) {
    page.html.push_str(
        "<h2>What this rests on</h2><ul><li>Jobs and their times are those that Keyframe kept on this host. Drills and their times are those of \
         the evidence log where they are marked so; its entries are chained and signed.</li><li>A point counts from when it was complete. A gap \
         goes from the instant that the latest complete point holds until the next one was complete.</li><li>Objectives and policies are those of \
         the time at which this report was made.</li><li>What settled an exception is the next success of the same kind, also after the \
         period.</li></ul><table><tbody>",
    );
    log(page, "Evidence log", &report.evidence);
    log(page, "Log of who did what", &report.audit);
    put!(
        page,
        "<tr><th>This page shows<td>report.json, SHA-256 <span class=\"mono\">{}</span><br>which is the document that is signed, in \
         report.json.sig</tr></tbody></table>",
        safe(json_sha256)
    );
}
