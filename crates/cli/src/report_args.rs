//! The arguments of `keyframe report`.

use std::path::PathBuf;

use clap::Args;
use jiff::civil::Date;

#[derive(Debug, Args)]
#[command(
    after_help = "Writes report.html to read and print, report.json with all of it, and report.json.sig, which signs report.json with the key of the \
    home's evidence. With --json the document goes to standard output, and files are written only with --out. Works without a daemon. \
    docs/REPORTS.md says what is in it.\n\nStatus 1 of --verify: it is not as it was signed."
)]
pub struct ReportArgs {
    /// The first day, such as 2026-10-01, in the time zone of the host's policies
    #[arg(long, value_name = "DATE", required_unless_present = "verify")]
    pub from: Option<Date>,
    /// The last day; all of it is told
    #[arg(long, value_name = "DATE", required_unless_present = "verify")]
    pub to: Option<Date>,
    /// Where the files go [default: keyframe-report-FROM-TO in the present directory]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where policies are
    #[arg(long = "policies", value_name = "DIR")]
    pub directories: Vec<PathBuf>,
    /// Look whether the report in DIR is as it was signed
    #[arg(long, value_name = "DIR", conflicts_with_all = ["from", "to", "out", "directories"])]
    pub verify: Option<PathBuf>,
    /// The public key, from a copy that was kept elsewhere: 64 hexadecimal digits
    #[arg(long, value_name = "HEX", requires = "verify")]
    pub public_key: Option<String>,
}
