//! Puts a guest's memory back into huge pages by hand, for measuring: `collapse PID RAM_MIB [FILL_MIB]`.

use std::sync::atomic::AtomicBool;

use keyframe_memory::collapse::{CollapseOptions, collapse_huge_pages};
use keyframe_vmstate::PageCount;
use rustix::process::Pid;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [pid, mib, fill @ ..] = args.as_slice() else {
        return Err("usage: collapse PID RAM_MIB [FILL_MIB]".into());
    };
    let pid = Pid::from_raw(pid.parse()?).ok_or("no such process")?;
    let ram = PageCount::from_bytes(mib.parse::<u64>()? << 20).ok_or("too much")?;
    let never = AtomicBool::new(false);
    let fill_bytes = fill.first().map_or(Ok(0), |mib| mib.parse::<u64>())? << 20;
    let options = CollapseOptions { fill_bytes, ..CollapseOptions::default() };
    let report = collapse_huge_pages(pid, ram, &options, &never)?;
    println!("{report:?}");
    Ok(())
}
