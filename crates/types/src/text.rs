//! Texts for people: spans of time in a word, and what others wrote made safe to stand in a page.

/// A span of time as people read it: in the largest unit of which there are two.
#[must_use]
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Text for HTML, in an element or an attribute: whatever a guest or a person wrote is text.
#[must_use]
pub fn html(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(c),
            // Neither what steers a terminal nor what turns the direction of text.
            c if c.is_control()
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                safe.push('\u{fffd}');
            }
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_in_the_largest_unit_of_which_there_are_two() {
        let spans = [1, 119, 120, 600, 7199, 7200, 172_799, 200_000].map(span);
        assert_eq!(spans, ["1 s", "119 s", "2 min", "10 min", "119 min", "2 h", "47 h", "2 d"]);
    }

    #[test]
    fn nothing_is_markup_and_nothing_turns_or_steers() {
        assert_eq!(html("<a href=\"x\">'&'</a>\n"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;\n");
        assert_eq!(html("a\u{202e}b\u{1b}[2J\u{2066}"), "a\u{fffd}b\u{fffd}[2J\u{fffd}");
    }
}
