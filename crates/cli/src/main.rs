//! `keyframe`: arguments, terminal, progress; no logic.

mod args;
mod backup_args;
mod commands;
mod files_args;
mod output;
mod policy_args;
mod progress;
mod record;
mod repo_args;
mod report_args;
mod serve_args;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser as _;
use keyframe_engine::{Context, Error, Home, Kind};

use args::{Arguments, Command};
use output::Output;
use progress::{Telling, Terminal};
use record::Typed;

/// The version, with the commit that it was built from where that is known.
pub const VERSION: &str = env!("KEYFRAME_VERSION");

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A closed pipe is the only thing that can go wrong here, and there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    log(arguments.global.verbose);
    let output = Output::new(arguments.global.json);
    let typed = Typed::of(&arguments);
    let ended = run(arguments, &output);
    if let Some(typed) = typed {
        typed.note(&ended, &output);
    }
    match ended {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            output.failure(&error);
            ExitCode::from(exit_status(error.kind()))
        }
    }
}

fn log(verbosity: u8) {
    let level = match verbosity {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
}

/// The exit status that scripts rely on.
fn exit_status(kind: Kind) -> u8 {
    match kind {
        Kind::Failed => 1,
        Kind::Usage => 2,
        Kind::Incomplete => 3,
        Kind::NotFound => 10,
        Kind::Busy => 11,
        Kind::WrongKey => 12,
        Kind::GaveWay => 13,
        Kind::Interrupted => 130,
    }
}

fn run(arguments: Arguments, output: &Output) -> Result<u8, Error> {
    let global = arguments.global;
    let cancel = Arc::new(AtomicBool::new(false));
    let telling = match (global.quiet, output.is_json()) {
        (true, _) => Telling::Nothing,
        (false, true) => Telling::Notes,
        (false, false) => Telling::All,
    };
    match arguments.command {
        // Page servers and guards are not a person's: Ctrl-C and the home are none of their business.
        Command::Internal(internal) => commands::internal::run(internal),
        // Repositories need no home.
        Command::Repo(command) => {
            listen_for_signals(&cancel)?;
            Ok(commands::repo::run(command, &Terminal::new(telling), &cancel, output))
        }
        Command::Image(command) => {
            listen_for_signals(&cancel)?;
            Ok(commands::image::run(command, &Terminal::new(telling), &cancel, output))
        }
        Command::Files(args) => {
            listen_for_signals(&cancel)?;
            commands::files::run(args, &cancel, output)
        }
        Command::Diff(args) => {
            listen_for_signals(&cancel)?;
            commands::files::diff::run(&args, &cancel, output)
        }
        Command::Mount(args) => {
            listen_for_signals(&cancel)?;
            commands::files::mount::run(&args, &cancel, output)
        }
        // Nor is one made by looking at policies.
        Command::Policy(command) => {
            commands::policy::run(&global.home.unwrap_or_else(Home::default_root), command, output)
        }
        Command::Status(args) => {
            commands::serve::status(&global.home.unwrap_or_else(Home::default_root), &args, output)
        }
        Command::Audit(command) => {
            commands::serve::audit(&global.home.unwrap_or_else(Home::default_root), command, output)
        }
        Command::Approvals(command) => {
            commands::approvals::run(&global.home.unwrap_or_else(Home::default_root), command, output)
        }
        Command::Token(command) => {
            commands::serve::token(&Home::open(&global.home.unwrap_or_else(Home::default_root))?, command, output)
        }
        Command::Serve(args) => {
            listen_for_signals(&cancel)?;
            commands::serve::serve(&Home::open(&global.home.unwrap_or_else(Home::default_root))?, args, &cancel, output)
        }
        Command::Report(args) => commands::report::run(&global.home.unwrap_or_else(Home::default_root), &args, output),
        Command::Machine(command) => {
            listen_for_signals(&cancel)?;
            let progress = Terminal::new(telling);
            let home = Home::open(&global.home.unwrap_or_else(Home::default_root))?;
            let ctx = Context { home: &home, progress: &progress, cancel: &cancel };
            let status = commands::run(&ctx, command, output);
            progress.clear();
            status
        }
    }
}

/// A signal asks a command to end, by setting `cancel`; the second time it does what it does by default: it ends us.
fn listen_for_signals(cancel: &Arc<AtomicBool>) -> Result<(), Error> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let registered = signal_hook::flag::register_conditional_default(signal, Arc::clone(cancel))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(cancel)));
        registered.map_err(|source| Error::Io { action: "listen for", path: "signals".into(), source })?;
    }
    Ok(())
}
