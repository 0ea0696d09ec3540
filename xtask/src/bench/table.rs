//! A table in plain text that is also Markdown.

/// One line of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What was measured.
    pub figure: String,
    /// What it should be; empty where it is told for comparison.
    pub target: String,
    /// What it was.
    pub measured: String,
    /// Whether that is good enough; nothing where there is no target, or nothing was measured.
    pub reached: Option<bool>,
}

impl Row {
    /// A figure with a target.
    pub fn judged(
        figure: impl Into<String>,
        target: impl Into<String>,
        measured: impl Into<String>,
        reached: Option<bool>,
    ) -> Self {
        Self { figure: figure.into(), target: target.into(), measured: measured.into(), reached }
    }

    /// A figure to compare with.
    pub fn told(figure: impl Into<String>, measured: impl Into<String>) -> Self {
        Self::judged(figure, "", measured, None)
    }

    fn cells(&self) -> [&str; 4] {
        let reached = match self.reached {
            Some(true) => "yes",
            Some(false) => "**no**",
            None if self.target.is_empty() => "",
            None => "not measured",
        };
        [&self.figure, &self.target, &self.measured, reached]
    }
}

/// The rows with their heads, columns aligned.
pub fn drawn(rows: &[Row]) -> String {
    let heads = ["figure", "to reach", "measured", "reached"];
    let lines: Vec<_> = std::iter::once(heads).chain(rows.iter().map(Row::cells)).collect();
    let width =
        |column: usize| lines.iter().filter_map(|cells| cells.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..heads.len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |cells: &[&str; 4]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} "));
        format!("|{}|\n", padded.collect::<Vec<_>>().join("|"))
    };
    let rule = format!("|{}|\n", widths.iter().map(|width| "-".repeat(width + 2)).collect::<Vec<_>>().join("|"));
    let mut drawn = lines.first().map(line).unwrap_or_default() + &rule;
    drawn.extend(lines.iter().skip(1).map(line));
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_verdicts_spelled_out() {
        let rows = [Row::judged("pause", "<= 3 ms", "2 ms", Some(true)), Row::told("a longer one", "9 ms")];
        assert_eq!(
            drawn(&rows),
            "| figure       | to reach | measured | reached |\n\
             |--------------|----------|----------|---------|\n\
             | pause        | <= 3 ms  | 2 ms     | yes     |\n\
             | a longer one |          | 9 ms     |         |\n"
        );
        assert!(drawn(&[Row::judged("x", "1", "2", Some(false))]).contains("**no**"));
        assert!(drawn(&[Row::judged("x", "1", "-", None)]).contains("not measured"));
    }
}
