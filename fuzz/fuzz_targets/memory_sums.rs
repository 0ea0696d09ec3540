//! Our own companions of an image, `memory.b3` and `memory.hot`: what is read is written the same
//! again. Never panics.
//!
//! Input: the first byte says which, the rest is the file without its checksum, which is made to
//! fit; otherwise nothing would get past it.
#![no_main]

use keyframe_vmstate::hot::HotList;
use keyframe_vmstate::sums::SumsHeader;
use keyframe_vmstate::testing::Machine;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((which, rest)) = input.split_first() else { return };
    let mut bytes = rest.to_vec();
    if which % 2 == 0 {
        if let Some(length) = bytes.get_mut(16..20) {
            length.copy_from_slice(&(rest.len() as u32 + 32).to_le_bytes());
        }
    }
    let digest = blake3::hash(&bytes);
    bytes.extend(digest.as_bytes());
    if which % 2 == 0 {
        if let Ok(header) = SumsHeader::parse(&bytes) {
            assert_eq!(header.to_bytes(), bytes);
        }
    } else {
        let ram = Machine::new(&[("pc.ram", 40), ("vga", 17), ("one", 1)], 3).header.ram;
        if let Ok(list) = HotList::parse(&bytes, &ram) {
            assert_eq!(list.to_bytes(), bytes);
        }
    }
});
