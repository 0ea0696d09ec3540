//! Identifiers: of objects, drawn at random, and of pages, computed from their bytes with a secret key.

use std::fmt;

use keyframe_store::ObjectName;

use crate::error::Result;

/// Bytes of a page: what is deduplicated.
pub const PAGE_BYTES: usize = 4096;

/// 128 random bits that name an object, for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId([u8; 16]);

impl ObjectId {
    /// Draws a fresh one.
    ///
    /// # Errors
    /// [`Error::Crypto`](crate::Error::Crypto) when the system has no randomness.
    pub fn random() -> Result<Self> {
        crate::crypto::random().map(Self)
    }

    /// These bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// From 32 lower-case hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        hex_decode(text, &mut bytes).then_some(Self(bytes))
    }

    /// The first eight digits.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex(&self.0))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl serde::Serialize for ObjectId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ObjectId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not an identifier of 32 hexadecimal digits"))
    }
}

/// Keyed BLAKE3 of a page, cut to 128 bits. All zeros stand for a page that is not there any more.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// No page.
    pub const ABSENT: Self = Self([0; 16]);

    /// From a digest's first half.
    #[must_use]
    pub fn from_digest(digest: &[u8; 32]) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(digest.first_chunk::<16>().unwrap_or(&[0; 16]));
        Self(bytes)
    }

    /// These bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Whether there is no page.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        *self == Self::ABSENT
    }

    /// Its first 64 bits: as good as random, for tables.
    #[must_use]
    pub fn low(&self) -> u64 {
        u64::from_le_bytes(*self.0.first_chunk::<8>().unwrap_or(&[0; 8]))
    }

    /// Its last 64 bits.
    #[must_use]
    pub fn high(&self) -> u64 {
        u64::from_le_bytes(*self.0.last_chunk::<8>().unwrap_or(&[0; 8]))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.low())
    }
}

/// The kinds of objects and where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// What there is to know before any key: version, repository id.
    Config,
    /// A wrapped bundle of keys.
    Key,
    /// Frames of pages, or of tree nodes.
    Pack,
    /// Which packs there are and what is in them.
    Index,
    /// A restore point.
    Point,
    /// Packs that a prune wants to remove later.
    Condemned,
    /// A point that is not one yet: its backup still looks whether a prune took something away.
    Pending,
    /// Something said about a point.
    Mark,
}

impl ObjectKind {
    /// All kinds that carry the repository's own authentication.
    pub const AUTHENTICATED: [Self; 6] =
        [Self::Pack, Self::Index, Self::Point, Self::Condemned, Self::Pending, Self::Mark];

    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Pack => 1,
            Self::Index => 2,
            Self::Point => 3,
            Self::Condemned => 4,
            Self::Key => 5,
            Self::Config => 6,
            Self::Pending => 7,
            Self::Mark => 8,
        }
    }

    /// The area of the store in which such objects lie.
    #[must_use]
    pub const fn area(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Key => "keys",
            Self::Pack => "packs",
            Self::Index => "index",
            Self::Point => "points",
            Self::Condemned => "condemned",
            Self::Pending => "pending",
            Self::Mark => "marks",
        }
    }

    /// The name of an object of this kind.
    ///
    /// # Errors
    /// None that can occur: every id is a good name.
    pub fn name(self, id: ObjectId) -> Result<ObjectName> {
        let text = id.to_string();
        let name = match self {
            Self::Config => "config".to_owned(),
            Self::Pack => format!("packs/{}/{text}", text.get(..2).unwrap_or("00")),
            kind => format!("{}/{text}", kind.area()),
        };
        Ok(ObjectName::new(name)?)
    }

    /// The id in the name of an object of this kind, if it is one.
    #[must_use]
    pub fn id_of(self, name: &ObjectName) -> Option<ObjectId> {
        ObjectId::parse(name.leaf()).filter(|id| self.name(*id).is_ok_and(|expected| expected == *name))
    }
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Fills `into` from exactly as many digits; `false` when the text is anything else.
#[must_use]
pub fn hex_decode(text: &str, into: &mut [u8]) -> bool {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != into.len() * 2 {
        return false;
    }
    for (pair, byte) in text.as_bytes().chunks_exact(2).zip(into) {
        match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return false,
        }
    }
    true
}

/// Reads fixed-width little-endian fields from the front of bytes; every read is checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn id(&mut self) -> Option<ObjectId> {
        self.array().map(ObjectId::from_bytes)
    }

    /// LEB128, at most 64 bits.
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Writes LEB128.
pub(crate) fn put_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_and_names_tell_their_kind() {
        let id = ObjectId::random().unwrap();
        assert_eq!(ObjectId::parse(&id.to_string()), Some(id));
        for text in ["", "00", &"G".repeat(32), &"A0".repeat(16)] {
            assert_eq!(ObjectId::parse(text), None);
        }
        let name = ObjectKind::Pack.name(id).unwrap();
        assert_eq!(ObjectKind::Pack.id_of(&name), Some(id));
        assert_eq!(ObjectKind::Index.id_of(&name), None);
    }

    #[test]
    fn varints_read_back_and_end() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut fields = Fields::new(&bytes);
            assert_eq!(fields.varint(), Some(value));
            assert!(fields.is_empty());
        }
        assert_eq!(Fields::new(&[0xff; 11]).varint(), None);
        assert_eq!(Fields::new(&[0x80]).varint(), None);
    }
}
