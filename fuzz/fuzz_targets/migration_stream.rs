//! A migration stream: any bytes, in any cuts, give the same findings as in one piece, name only
//! pages that exist, and never panic.
//!
//! Input: the first two bytes are the length of the pieces, the rest is the stream.
#![no_main]

use keyframe_vmstate::decode::{Decoder, Header, Sink};
use keyframe_vmstate::{BlockIndex, Error, Page, PageIndex};
use libfuzzer_sys::fuzz_target;

/// Hashes what it is told, and checks that it makes sense.
#[derive(Default)]
struct Witness {
    told: blake3::Hasher,
    header: Option<Header>,
    devices: bool,
}

impl Witness {
    fn tell(&mut self, block: BlockIndex, page: PageIndex, bytes: &[u8]) {
        let header = self.header.as_ref().expect("a header comes first");
        assert!(header.ram.contains(block, page));
        assert!(!self.devices, "no page after the devices");
        self.told.update(&[block.get() as u8]);
        self.told.update(&page.get().to_le_bytes());
        self.told.update(bytes);
    }
}

impl Sink for Witness {
    type Error = Error;

    fn header(&mut self, header: &Header) -> Result<(), Error> {
        assert!(self.header.replace(header.clone()).is_none(), "one header");
        Ok(())
    }

    fn page(&mut self, block: BlockIndex, page: PageIndex, bytes: &Page) -> Result<(), Error> {
        self.tell(block, page, bytes);
        Ok(())
    }

    fn zero_page(&mut self, block: BlockIndex, page: PageIndex) -> Result<(), Error> {
        self.tell(block, page, &[]);
        Ok(())
    }

    fn device_state(&mut self, bytes: &[u8]) -> Result<(), Error> {
        assert!(self.header.is_some());
        self.devices = true;
        self.told.update(bytes);
        Ok(())
    }
}

fn decode<'a>(mut pieces: impl Iterator<Item = &'a [u8]>) -> String {
    let (mut decoder, mut witness) = (Decoder::new(), Witness::default());
    let fed = pieces.try_for_each(|piece| decoder.feed(piece, &mut witness));
    let told = witness.told.finalize();
    match fed {
        // What was told before an error may depend on the pieces only within the device state.
        Err(error) if !witness.devices => format!("{told} {error}"),
        Err(_) => "wrong device state".into(),
        Ok(()) => format!("{told} {:?} {:?}", witness.header, decoder.finish()),
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first_chunk::<2>() else { return };
    let size = usize::from(u16::from_le_bytes(*size)).max(1);
    assert_eq!(decode(std::iter::once(bytes)), decode(bytes.chunks(size)));
});
