//! Images from outside: golden ones that must read the same for ever, and broken ones made of them.

use keyframe_qcow2::header::{Compression, Encryption, Version};
use keyframe_qcow2::{Error, Extent, ExtentKind, GuestOffset, Header, Image, LayerReader};
use proptest::prelude::*;

const V2: &[u8] = include_bytes!("golden/v2.qcow2");
const V3: &[u8] = include_bytes!("golden/v3.qcow2");
const ZSTD: &[u8] = include_bytes!("golden/zstd.qcow2");

/// Where the golden images have their tables.
const L1_AT: usize = 1536;
const L2_AT: usize = 2048;

fn text() -> Vec<u8> {
    (0..200).flat_map(|n| format!("keyframe {n}\n").into_bytes()).collect()
}

fn extents(bytes: &[u8]) -> Result<Vec<(u64, u64, ExtentKind)>, Error> {
    let image = Image::new(bytes)?;
    let all: Result<Vec<Extent>, Error> = image.extents()?.collect();
    Ok(all?.iter().map(|e| (e.start.bytes(), e.len.bytes(), e.kind)).collect())
}

fn disk(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut reader = LayerReader::new(Image::new(bytes)?)?;
    let mut disk = vec![0xff; 65536];
    reader.read_at(GuestOffset::new(0), &mut disk)?;
    Ok(disk)
}

#[test]
fn golden_images_read_the_same_for_ever() {
    let (data, compressed) = ((0, 1024, ExtentKind::Data), (4096, 512, ExtentKind::Compressed));
    let zero = (8192, 1024, ExtentKind::Zero);
    let cases = [
        (V2, Version::V2, Compression::Deflate, vec![data, compressed]),
        (V3, Version::V3, Compression::Deflate, vec![data, compressed, zero]),
        (ZSTD, Version::V3, Compression::Zstd, vec![compressed]),
    ];
    for (bytes, version, compression, expected) in cases {
        let header = Header::read(bytes).unwrap();
        assert_eq!((header.version(), header.compression()), (version, compression));
        assert_eq!((header.cluster().bytes(), header.virtual_size().bytes()), (512, 65536));
        assert_eq!((header.encryption(), header.refcount_bits()), (Encryption::None, 16));
        assert!(header.backing().is_none() && header.bitmaps().is_none());
        assert!(!header.is_dirty() && !header.is_corrupt());
        assert_eq!(extents(bytes).unwrap(), expected);
        let disk = disk(bytes).unwrap();
        assert_eq!(disk[4096..4608], text()[..512]);
        if expected.contains(&data) {
            assert_eq!(disk[..1024], text()[..1024]);
        }
        assert!(disk[4608..].iter().all(|&byte| byte == 0));
    }
}

/// The image with these bytes at this place.
fn patched(image: &[u8], at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = image.to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

fn header_error(at: usize, with: &[u8]) -> Error {
    let outcome = Header::read(&patched(V3, at, with));
    outcome.err().unwrap_or_else(|| panic!("byte {at} = {with:x?} was taken"))
}

#[test]
fn impossible_headers_are_refused_by_field() {
    let field = |at, with: &[u8], name| {
        let error = header_error(at, with);
        assert!(matches!(&error, Error::Field { field, .. } if *field == name), "{name}: {error}");
    };
    assert!(matches!(header_error(0, b"QFI\xfa"), Error::NotQcow2));
    for version in [0u32, 1, 4, u32::MAX] {
        assert!(matches!(header_error(4, &version.to_be_bytes()), Error::Version { .. }));
    }
    field(8, &513u64.to_be_bytes(), "backing_file_offset");
    field(8, &[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1], "backing_file_size");
    for bits in [0u32, 8, 22, 64, u32::MAX] {
        field(20, &bits.to_be_bytes(), "cluster_bits");
    }
    field(24, &u64::MAX.to_be_bytes(), "size");
    field(32, &3u32.to_be_bytes(), "crypt_method");
    field(36, &1u32.to_be_bytes(), "l1_size");
    field(24, &(1u64 << 40).to_be_bytes(), "l1_size");
    field(56, &0u32.to_be_bytes(), "refcount_table_clusters");
    field(60, &65537u32.to_be_bytes(), "nb_snapshots");
    field(72, &(1u64 << 4).to_be_bytes(), "cluster_bits");
    field(72, &(1u64 << 3).to_be_bytes(), "compression_type");
    field(104, &[1], "compression_type");
    field(88, &1u64.to_be_bytes(), "autoclear_features");
    field(96, &7u32.to_be_bytes(), "refcount_order");
    for length in [0u32, 103, 105, 520, u32::MAX] {
        field(100, &length.to_be_bytes(), "header_length");
    }
}

#[test]
fn impossible_tables_are_refused_by_place() {
    let table = |at, with: &[u8], name| {
        let error = header_error(at, with);
        assert!(matches!(&error, Error::Table { table, .. } if *table == name), "{name}: {error}");
    };
    for at in [1, 0, 1 << 40, !511u64] {
        table(40, &at.to_be_bytes(), "L1 table");
        table(48, &at.to_be_bytes(), "refcount table");
    }
    table(36, &u32::MAX.to_be_bytes(), "L1 table");
    table(36, &(1u32 << 20).to_be_bytes(), "L1 table");
    table(56, &u32::MAX.to_be_bytes(), "refcount table");
    table(60, &100u32.to_be_bytes(), "snapshot table");
}

#[test]
fn unknown_features_are_told_by_the_name_that_the_image_gives_them() {
    let error = header_error(72, &((1u64 << 5) | (1 << 63)).to_be_bytes());
    assert!(matches!(&error, Error::UnknownFeatures { names } if names == "bit 5, bit 63"), "{error}");
    let mut names = vec![0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 48, 0, 5];
    names.extend(b"time\ntravel");
    let image = patched(&patched(V3, 72, &(1u64 << 5).to_be_bytes()), 112, &names);
    let error = Header::read(&image).unwrap_err();
    assert!(matches!(&error, Error::UnknownFeatures { names } if names == "timetravel"), "{error}");
}

#[test]
fn features_that_only_some_readers_lack_are_told_and_not_refused() {
    let header = Header::read(&patched(V3, 72, &3u64.to_be_bytes())).unwrap();
    assert!(header.is_dirty() && header.is_corrupt());
    let header = Header::read(&patched(V3, 32, &1u32.to_be_bytes())).unwrap();
    assert_eq!(header.encryption(), Encryption::Aes);
}

#[test]
fn broken_extensions_are_refused() {
    let longer = header_error(112, &[1, 2, 3, 4, 0, 0, 1, 0xf4]);
    assert!(matches!(longer, Error::Extension { at: 112, .. }), "{longer}");
    let format = [0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 16];
    assert!(matches!(header_error(112, &format), Error::Extension { magic: 0xe279_2aca, .. }));
    let bitmaps = [0x23, 0x85, 0x28, 0x75, 0, 0, 0, 8];
    assert!(matches!(header_error(112, &bitmaps), Error::Extension { magic: 0x2385_2875, .. }));
}

#[test]
fn impossible_entries_are_refused_by_place() {
    let entry = |at: usize, with: u64, name| {
        let error = extents(&patched(V3, at, &with.to_be_bytes())).unwrap_err();
        let told =
            matches!(&error, Error::Entry { table, at: told, .. } if *table == name && told.bytes() == at as u64);
        assert!(told, "{name} {with:#x}: {error}");
    };
    for bad in [1, 0x900, 1 << 56, 1 << 40, 0xe01] {
        entry(L1_AT, bad, "L1");
    }
    for bad in [0x2, 0x1_0000_0000, 1 << 61, 0xff_ffff_ffff_fe00, (1 << 62) | 0x10_0000, (3 << 62) | 0x400] {
        entry(L2_AT + 8 * 3, bad, "L2");
    }
    let zero_in_v2 = extents(&patched(V2, L2_AT + 8 * 3, &1u64.to_be_bytes()));
    assert!(matches!(zero_in_v2, Err(Error::Entry { .. })));
}

#[test]
fn an_iterator_ends_at_the_first_damage() {
    let image = patched(V3, L2_AT + 8 * 3, &2u64.to_be_bytes());
    let image = Image::new(image).unwrap();
    let results: Vec<bool> = image.extents().unwrap().map(|extent| extent.is_ok()).collect();
    assert_eq!(results.last(), Some(&false));
    assert_eq!(results.iter().filter(|ok| !**ok).count(), 1);
}

#[test]
fn more_l2_tables_than_the_file_has_clusters_are_refused() {
    // 128 entries that all name one table, in a file of far fewer clusters.
    let mut image = patched(V3, 24, &(128u64 * 32768).to_be_bytes());
    image[36..40].copy_from_slice(&128u32.to_be_bytes());
    let end = image.len() as u64;
    image[40..48].copy_from_slice(&end.to_be_bytes());
    for _ in 0..128 {
        image.extend((L2_AT as u64).to_be_bytes());
    }
    let error = extents(&image).unwrap_err();
    assert!(matches!(error, Error::Table { table: "L2 tables", .. }), "{error}");
}

#[test]
fn damaged_compressed_data_is_told_by_place() {
    for (image, name) in [(V3, "deflate"), (ZSTD, "zstd")] {
        let entry_at = L2_AT + 8 * 8;
        let entry = u64::from_be_bytes(image[entry_at..entry_at + 8].try_into().unwrap());
        let at = usize::try_from(entry & ((1 << 61) - 1)).unwrap();
        assert!(disk(image).is_ok());
        let error = disk(&patched(image, at, &[0xff; 24])).unwrap_err();
        let told = matches!(&error, Error::Compressed { at: told, guest, .. } if told.bytes() == at as u64 && guest.bytes() == 4096);
        assert!(told, "{name}: {error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error_or_reads_short_data_as_zeros() {
    for image in [V2, V3, ZSTD] {
        let whole = disk(image).unwrap();
        for len in 0..image.len() {
            let cut = &image[..len];
            if len < L2_AT + 512 {
                assert!(extents(cut).is_err(), "{len} bytes");
            }
            if let Ok(disk) = disk(cut) {
                let differs = disk.iter().zip(&whole).any(|(cut, whole)| cut != whole && *cut != 0);
                assert!(!differs, "{len} bytes");
            }
        }
    }
}

/// Opens, walks and reads; the outcome is free, a panic is not. Says how far it came.
fn everything(bytes: &[u8]) -> usize {
    let Ok(image) = Image::new(bytes) else { return 0 };
    let walked = image.extents().map_or(0, |all| all.take(100_000).count());
    let Ok(mut reader) = LayerReader::new(image) else { return 1 + walked };
    let size = reader.image().header().virtual_size().bytes();
    let mut buf = vec![0; 4096];
    for at in (0..size).step_by(4096).take(64) {
        let len = buf.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
        if let Ok(holes) = reader.read_at(GuestOffset::new(at), &mut buf[..len]) {
            assert!(holes.iter().all(|hole| hole.start < hole.end && hole.end <= len));
        }
    }
    2 + walked
}

#[test]
fn an_empty_file_is_no_image() {
    assert!(matches!(Header::read(&tempfile::tempfile().unwrap()), Err(Error::NotQcow2)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damage_never_panics(
        which in 0usize..3,
        changes in proptest::collection::vec((prop_oneof![0usize..120, 1536usize..2600, 0usize..2600], any::<u8>()), 1..6),
        cut in prop_oneof![Just(usize::MAX), 0usize..4096],
    ) {
        let mut image = [V2, V3, ZSTD][which].to_vec();
        for (at, with) in changes {
            image[at] = with;
        }
        image.truncate(cut);
        let reached = everything(&image);
        prop_assert!(reached <= 2 + 100_000);
    }

    #[test]
    fn noise_is_no_image(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assume!(!bytes.starts_with(b"QFI\xfb"));
        let outcome = Header::read(&bytes);
        prop_assert!(matches!(outcome, Err(Error::NotQcow2)));
    }
}
