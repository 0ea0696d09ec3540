//! Running other programs: either watched by the person, or kept quiet until they fail.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// How a command would be typed.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| {
        let text = word.to_string_lossy();
        if text.contains([' ', '\'', '"', ';', '$', '*']) {
            format!("'{}'", text.replace('\'', r"'\''"))
        } else {
            text.into_owned()
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Runs a command whose output the person sees.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub fn watched(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs a command and keeps its output, which is shown only when it fails.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub fn quiet(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        bail!("{} failed: {}\n{}", shown(command), output.status, said.trim_end());
    }
    Ok(output)
}

/// What a quiet command printed.
///
/// # Errors
/// As [`quiet`].
pub fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&quiet(command)?.stdout).into_owned())
}

/// A command from its words.
pub fn command<const N: usize>(program: &str, arguments: [&str; N]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        assert_eq!(shown(&command("ls", ["-l", "a b", "it's"])), r"ls -l 'a b' 'it'\''s'");
    }

    #[test]
    fn a_failure_brings_what_was_said() {
        let error = quiet(&mut command("sh", ["-c", "echo why >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
    }
}
