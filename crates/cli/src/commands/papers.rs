//! Manual pages and completions, from what `--help` tells.

use std::fs;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;
use keyframe_engine::Error;

use crate::args::Arguments;

/// Writes `man/*.1` and `completions/*` below `dir`.
pub fn write(dir: &Path) -> Result<(), Error> {
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    let io = |source| Error::Io { action: "write", path: dir.into(), source };
    for place in [&man, &completions] {
        fs::create_dir_all(place).map_err(io)?;
    }
    clap_mangen::generate_to(Arguments::command(), &man).map_err(io)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Arguments::command(), "keyframe", &completions).map_err(io)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let pages: Vec<String> = fs::read_dir(dir.path().join("man"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        for command in Arguments::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let page = format!("keyframe-{}.1", command.get_name());
            assert!(pages.contains(&page), "{page} is missing");
        }
        assert!(!pages.iter().any(|page| page.contains("internal")), "{pages:?}");
        let bash = fs::read_to_string(dir.path().join("completions/keyframe.bash")).unwrap();
        assert!(bash.contains("snapshot-set"));
    }
}
