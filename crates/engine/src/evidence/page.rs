//! A drill on one page: HTML that needs nothing else, picture included.

use std::fmt::Write as _;

use base64::Engine as _;
use keyframe_types::text::html as escaped;

use crate::drill::point::DrillRecord;
use crate::drill::record::{TestRecord, Verdict};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2024;\
background:#fff}h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}.verdict{display:inline-block;\
padding:.2rem .8rem;border-radius:1rem;font-weight:600;color:#fff}.passed{background:#1a7f4b}.failed{background:#c0292b}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #d8dde3;\
vertical-align:top}td.mono,pre{font-family:ui-monospace,monospace;font-size:.85rem;word-break:break-all}pre{background:#f4f6f8;\
padding:.8rem;white-space:pre-wrap}img{max-width:100%;border:1px solid #d8dde3}@media(prefers-color-scheme:dark){body{color:\
#e8eaed;background:#15181b}td,th{border-color:#343a40}pre{background:#1f2428}}";

/// What was seen of one machine that was brought up.
pub(crate) struct Seen<'a> {
    /// How it was brought up.
    pub how: &'a str,
    /// How that ended.
    pub record: &'a TestRecord,
    /// Its screen, a PNG.
    pub picture: Option<&'a [u8]>,
    /// The end of its serial console.
    pub serial: Option<&'a str>,
}

fn badge(verdict: Verdict) -> String {
    let word = verdict.as_str();
    format!("<span class=\"verdict {word}\">{word}</span>")
}

fn row(html: &mut String, name: &str, value: &str) {
    // A string takes everything.
    let _ = write!(html, "<tr><th>{}</th><td>{}</td></tr>", escaped(name), escaped(value));
}

/// The page of a drill.
pub(crate) fn page(record: &DrillRecord, seen: &[Seen<'_>]) -> String {
    let mut html = String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">");
    let title = escaped(&format!("Drill of {}", record.point));
    let _ = write!(
        html,
        "<meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style>\
         <h1>{title} {}</h1><table>",
        badge(record.verdict)
    );
    row(&mut html, "State of", &record.state_of.to_string());
    row(&mut html, "Consistency", record.consistency.as_str());
    row(&mut html, "Drilled", &format!("{} on {}", record.started, record.host));
    row(
        &mut html,
        "Restored after",
        &record.restored_ms.map_or_else(|| "not at all".to_owned(), |ms| format!("{ms:.0} ms")),
    );
    row(&mut html, "Whole drill", &format!("{:.0} ms", record.total_ms));
    row(&mut html, "Keyframe", &record.keyframe);
    html.push_str("</table>");
    if let Some(trouble) = &record.trouble {
        let _ = write!(html, "<h2>It could not be restored</h2><pre>{}</pre>", escaped(trouble));
    }
    if !record.disks.is_empty() {
        html.push_str(
            "<h2>Disks, compared with the repository</h2><table><tr><th>Disk<th>Size<th>BLAKE3 of its content</tr>",
        );
        for disk in &record.disks {
            let _ = write!(
                html,
                "<tr><td>{}</td><td>{}</td><td class=\"mono\">{}</td></tr>",
                escaped(disk.disk.as_str()),
                disk.bytes,
                escaped(disk.blake3.as_deref().unwrap_or("it is not what the repository has"))
            );
        }
        html.push_str("</table>");
    }
    for seen in seen {
        let _ = write!(html, "<h2>{} {}</h2><table>", escaped(seen.how), badge(seen.record.verdict));
        html.push_str("<tr><th>Check<th><th>After<th>Seen</tr>");
        for check in &seen.record.checks {
            let after = check.after_ms.map_or_else(String::new, |ms| format!("{ms:.0} ms"));
            let word = if check.passed { "passed" } else { "FAILED" };
            let _ = write!(
                html,
                "<tr><td>{}</td><td>{word}</td><td>{after}</td><td>{}</td></tr>",
                escaped(&check.name),
                escaped(&check.seen)
            );
        }
        html.push_str("</table>");
        if let Some(picture) = seen.picture {
            let picture = base64::engine::general_purpose::STANDARD.encode(picture);
            let _ = write!(html, "<p><img alt=\"its screen\" src=\"data:image/png;base64,{picture}\">");
        }
        if let Some(serial) = seen.serial {
            let _ = write!(html, "<pre>{}</pre>", escaped(serial));
        }
    }
    for note in &record.notes {
        let _ = write!(html, "<p>{}", escaped(note));
    }
    html.push_str("</html>\n");
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_wrote_is_text() {
        assert_eq!(
            escaped("<script>alert('a & b')</script>\x1b[2J"),
            "&lt;script&gt;alert(&#39;a &amp; b&#39;)&lt;/script&gt;\u{fffd}[2J"
        );
    }
}
