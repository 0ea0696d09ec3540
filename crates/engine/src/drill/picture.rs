//! What a machine's screen shows: read as QEMU writes it, judged, kept as PNG.

use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::ZlibEncoder;

/// The largest picture that is looked at, in bytes: 8192 x 4320 points.
pub(crate) const LARGEST_BYTES: u64 = 128 << 20;
/// A screen is blank when no more than one point of so many differs from all others: a cursor is no picture.
const BLANK_UP_TO_ONE_IN: usize = 1000;

/// A picture of 24 bits for each point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    width: u32,
    height: u32,
    points: Vec<u8>,
}

impl Picture {
    /// Reads a PPM as QEMU writes it: `P6`, width, height, 255, each behind white space, then three bytes for each point.
    /// `None` for anything else. Source: `ppm_save` in QEMU's ui/ui-qmp-cmds.c.
    pub(crate) fn from_ppm(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut word = || {
            let end = rest.iter().position(u8::is_ascii_whitespace)?;
            let (word, after) = rest.split_at_checked(end)?;
            rest = after.get(1..)?;
            std::str::from_utf8(word).ok()
        };
        let (magic, width, height, depth) = (word()?, word()?, word()?, word()?);
        let (width, height): (u32, u32) = (width.parse().ok()?, height.parse().ok()?);
        let length = u64::from(width).checked_mul(u64::from(height))?.checked_mul(3)?;
        let whole = magic == "P6" && depth == "255" && length > 0 && rest.len() as u64 == length;
        whole.then(|| Self { width, height, points: rest.to_vec() })
    }

    /// Whether it shows anything, and in a few words what.
    pub(crate) fn judge(&self) -> (bool, String) {
        let points = self.points.len() / 3;
        let differing = points - self.most_common();
        let blank = differing <= points / BLANK_UP_TO_ONE_IN;
        let seen = if blank { "blank" } else { "not blank" };
        let text = format!("{seen}: {differing} of {points} points differ from the most common colour");
        (!blank, format!("{}x{}, {text}", self.width, self.height))
    }

    /// How many points have the most common colour.
    fn most_common(&self) -> usize {
        let mut colours = std::collections::HashMap::new();
        for point in self.points.chunks_exact(3) {
            *colours.entry(point).or_insert(0_usize) += 1;
        }
        colours.into_values().max().unwrap_or(0)
    }

    /// As PNG. Source: PNG specification (third edition), 5 and 11.2.
    ///
    /// # Errors
    /// Of the compressor, which writes to memory.
    pub(crate) fn to_png(&self) -> io::Result<Vec<u8>> {
        let mut header = Vec::from(self.width.to_be_bytes());
        header.extend(self.height.to_be_bytes());
        // Eight bits for each of red, green and blue; deflate, no interlace.
        header.extend([8, 2, 0, 0, 0]);
        let mut lines = ZlibEncoder::new(Vec::new(), Compression::fast());
        let width_bytes = self.points.len() / usize::try_from(self.height).map_or(1, |height| height.max(1));
        for line in self.points.chunks_exact(width_bytes.max(1)) {
            // No filter.
            lines.write_all(&[0])?;
            lines.write_all(line)?;
        }
        let mut png = Vec::from(*b"\x89PNG\r\n\x1a\n");
        for (kind, data) in [(b"IHDR", header), (b"IDAT", lines.finish()?), (b"IEND", Vec::new())] {
            let length = u32::try_from(data.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
            let mut sum = flate2::Crc::new();
            sum.update(kind);
            sum.update(&data);
            png.extend(length.to_be_bytes());
            png.extend(kind);
            png.extend(data);
            png.extend(sum.sum().to_be_bytes());
        }
        Ok(png)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn black(width: u32, height: u32) -> Picture {
        Picture { width, height, points: vec![0; (width * height * 3) as usize] }
    }

    fn ppm(picture: &Picture) -> Vec<u8> {
        let mut bytes = format!("P6\n{} {}\n255\n", picture.width, picture.height).into_bytes();
        bytes.extend(&picture.points);
        bytes
    }

    #[test]
    fn a_cursor_is_blank_and_a_line_of_text_is_not() {
        let mut picture = black(720, 400);
        assert!(!picture.judge().0);
        // 9 x 16 points of a cursor.
        picture.points[3000..3000 + 9 * 16 * 3].fill(200);
        assert!(!picture.judge().0, "{}", picture.judge().1);
        picture.points[90_000..90_000 + 600 * 3].fill(200);
        assert!(picture.judge().0, "{}", picture.judge().1);
        picture.points.fill(200);
        assert!(!picture.judge().0, "one colour is as good as another");
    }

    #[test]
    fn pictures_read_back_and_broken_ones_are_refused() {
        let mut picture = black(5, 3);
        picture.points[7] = 9;
        let whole = ppm(&picture);
        assert_eq!(Picture::from_ppm(&whole), Some(picture));
        for length in 0..whole.len() {
            assert_eq!(Picture::from_ppm(&whole[..length]), None, "cut to {length}");
        }
        for text in ["P5\n1 1\n255\nxxx", "P6\n0 0\n255\n", "P6\n4294967295 4294967295\n255\n", "P6\n1 -1\n255\nxxx"] {
            assert_eq!(Picture::from_ppm(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn the_png_holds_every_line() {
        let mut picture = black(4, 2);
        picture.points[0] = 255;
        let png = picture.to_png().unwrap();
        assert!(png.starts_with(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x04\0\0\0\x02\x08\x02\0\0\0"));
        assert!(png.ends_with(b"IEND\xae\x42\x60\x82"), "the checksum of the empty end");
        let at = png.windows(4).position(|four| four == b"IDAT").unwrap() + 4;
        let mut lines = Vec::new();
        flate2::read::ZlibDecoder::new(&png[at..]).read_to_end(&mut lines).unwrap();
        assert_eq!(lines.len(), 2 * (1 + 4 * 3));
        assert_eq!(lines[..2], [0, 255]);
    }
}
