//! A postcopy migration's return path: any bytes, in any cuts, mean the same as in one piece, ask for no page
//! that does not exist, and never panic.
//!
//! Input: the first byte is the length of the pieces, the second says whether the source is fresh (even) or
//! resumes (odd), the rest is what the destination says.
#![no_main]

use std::sync::{Arc, LazyLock};

use keyframe_vmstate::config::Configuration;
use keyframe_vmstate::postcopy::{Opening, Pages, Resume, Resumed, Source, Zeros, extent_run, run_within};
use keyframe_vmstate::ram::{BlockId, RamBlock, RamLayout};
use keyframe_vmstate::{BlockIndex, PageCount};
use libfuzzer_sys::fuzz_target;

static RAM: LazyLock<Arc<RamLayout>> = LazyLock::new(|| {
    let mut ram = RamLayout::default();
    for (name, pages) in [("ram0", 200), ("pc.bios", 64), ("vga", 5)] {
        let id = BlockId::parse(name.as_bytes(), 0).expect("a name");
        ram.push(RamBlock::new(id, PageCount::new(pages).expect("small")), 0).expect("room");
    }
    Arc::new(ram)
});

fn fresh() -> Source {
    let blocks: Vec<BlockIndex> = RAM.iter().map(|(block, _)| block).collect();
    let machine = Configuration::new("pc-q35-10.0").expect("a machine");
    let opening = Opening::start(&machine, Arc::clone(&RAM), &blocks, &mut Vec::new());
    opening.and_then(|opening| opening.package(b"", &mut Vec::new())).expect("all blocks are lazy")
}

/// Answers what is asked; says what was said and done.
fn drain(source: &mut Source, told: &mut String) {
    while let Some(run) = source.next_request() {
        assert_eq!(run_within(&RAM, run.block, run.first, run.count), Some(run), "no such pages");
        let extent = extent_run(&RAM, run.block, run.first.extent()).expect("its pages exist");
        let sent = source.send(Pages::zero(extent), run.first, Zeros::Send, &mut Vec::new());
        *told += &format!("{run:?} {sent}\n");
    }
}

fn converse<'a>(resumes: bool, pieces: impl Iterator<Item = &'a [u8]>) -> String {
    let (mut told, mut out) = (String::new(), Vec::new());
    let mut state = if resumes {
        Resumed::Waiting(Resume::start(Arc::clone(&RAM), &mut out))
    } else {
        Resumed::Done(fresh())
    };
    for piece in pieces {
        state = match state {
            Resumed::Waiting(resume) => match resume.receive(piece, &mut out) {
                Ok(state) => state,
                Err(error) => return format!("{error:?}"),
            },
            Resumed::Done(mut source) => {
                let received = source.receive(piece);
                drain(&mut source, &mut told);
                if let Err(error) = received {
                    return format!("{error:?}");
                }
                Resumed::Done(source)
            }
        };
        if let Resumed::Done(source) = &mut state {
            drain(source, &mut told);
        }
    }
    if let Resumed::Done(source) = &state {
        let sent = source.pages_sent();
        assert!(sent <= RAM.total_bytes() / 4096);
        told += &format!("{:?} {} {sent}", source.shut(), source.devices_loaded());
    }
    format!("{told}{}", out.len())
}

fuzz_target!(|input: &[u8]| {
    let [size, mode, bytes @ ..] = input else { return };
    let resumes = mode % 2 == 1;
    let pieces = bytes.chunks(usize::from(*size).max(1));
    assert_eq!(converse(resumes, std::iter::once(bytes)), converse(resumes, pieces));
});
