//! A server's side of the negotiation: an option comes, bytes go back. No I/O.

use crate::error::{Result, protocol};
use crate::wire::{
    BASE_ALLOCATION, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, NAME_MOST, NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    PAYLOAD_MOST, flags, info, option, option_reply, u16_at, u32_at,
};

/// The id under which block status tells of `base:allocation`.
pub const ALLOCATION_ID: u32 = 1;

/// An export as far as negotiation needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer<'a> {
    /// Its name; a client that asks for the empty name gets the only one.
    pub name: &'a str,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agreement {
    /// Replies come in chunks.
    pub structured: bool,
    /// Block status tells of `base:allocation`.
    pub allocation: bool,
}

/// What comes after an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another option.
    Option,
    /// Requests.
    Transmission(Agreement),
    /// The end of the connection.
    End,
}

/// A negotiation.
#[derive(Debug)]
pub struct Handshake<'a> {
    offer: Offer<'a>,
    no_zeroes: bool,
    agreed: Agreement,
}

impl<'a> Handshake<'a> {
    /// The flags that every export has here.
    const FLAGS: u16 = flags::HAS_FLAGS
        | flags::READ_ONLY
        | flags::SEND_FLUSH
        | flags::SEND_DF
        | flags::CAN_MULTI_CONN
        | flags::SEND_CACHE;

    /// The first word, which the server has.
    #[must_use]
    pub fn greeting() -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[..8].copy_from_slice(&NBD_MAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[16..].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        bytes
    }

    /// Begins with the client's flags.
    ///
    /// # Errors
    /// [`crate::Error::Protocol`] for a client that is not of the fixed newstyle, or has flags that nobody offered.
    pub fn new(offer: Offer<'a>, client_flags: u32) -> Result<Self> {
        let (fixed, no_zeroes) = (u32::from(FLAG_FIXED_NEWSTYLE), u32::from(FLAG_NO_ZEROES));
        if client_flags & fixed == 0 || client_flags & !(fixed | no_zeroes) != 0 {
            return protocol("a client without fixed newstyle, or with flags that are not known");
        }
        Ok(Self { offer, no_zeroes: client_flags & no_zeroes != 0, agreed: Agreement::default() })
    }

    /// Answers one option.
    ///
    /// # Errors
    /// [`crate::Error::Protocol`] where only the end of the connection is an answer.
    pub fn answer(&mut self, which: u32, data: &[u8], out: &mut Vec<u8>) -> Result<Next> {
        match which {
            option::EXPORT_NAME => return self.export_name(data, out),
            option::ABORT => {
                reply(out, which, option_reply::ACK, &[]);
                return Ok(Next::End);
            }
            option::LIST if data.is_empty() => {
                let name = self.offer.name.as_bytes();
                reply(out, which, option_reply::SERVER, &[&be_len(name), name].concat());
                reply(out, which, option_reply::ACK, &[]);
            }
            option::INFO | option::GO => return Ok(self.go(which, data, out)),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.agreed.structured = true;
                reply(out, which, option_reply::ACK, &[]);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(which, data, out),
            option::LIST | option::STRUCTURED_REPLY => {
                refuse(out, which, option_reply::ERR_INVALID, "this option has no data");
            }
            _ => refuse(out, which, option_reply::ERR_UNSUPPORTED, "not known here"),
        }
        Ok(Next::Option)
    }

    /// The oldest way to begin: there is no way to refuse but to hang up.
    fn export_name(&self, data: &[u8], out: &mut Vec<u8>) -> Result<Next> {
        if !self.is_ours(data) {
            return protocol("a client asks for an export that is not there");
        }
        out.extend_from_slice(&self.offer.bytes.to_be_bytes());
        out.extend_from_slice(&Self::FLAGS.to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(Next::Transmission(self.agreed))
    }

    fn go(&self, which: u32, data: &[u8], out: &mut Vec<u8>) -> Next {
        let Some(name) = go_name(data) else {
            refuse(out, which, option_reply::ERR_INVALID, "lengths that do not fit");
            return Next::Option;
        };
        if !self.is_ours(name) {
            refuse(out, which, option_reply::ERR_UNKNOWN, "no such export");
            return Next::Option;
        }
        let mut export = info::EXPORT.to_be_bytes().to_vec();
        export.extend_from_slice(&self.offer.bytes.to_be_bytes());
        export.extend_from_slice(&Self::FLAGS.to_be_bytes());
        reply(out, which, option_reply::INFO, &export);
        // Any byte can be asked for; whole pages are best.
        let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [1, 4096, PAYLOAD_MOST] {
            sizes.extend_from_slice(&size.to_be_bytes());
        }
        reply(out, which, option_reply::INFO, &sizes);
        reply(out, which, option_reply::ACK, &[]);
        if which == option::GO { Next::Transmission(self.agreed) } else { Next::Option }
    }

    fn meta_context(&mut self, which: u32, data: &[u8], out: &mut Vec<u8>) {
        let setting = which == option::SET_META_CONTEXT;
        if setting {
            self.agreed.allocation = false;
        }
        let Some((name, queries)) = queries(data) else {
            return refuse(out, which, option_reply::ERR_INVALID, "lengths that do not fit");
        };
        if setting && !self.agreed.structured {
            return refuse(out, which, option_reply::ERR_INVALID, "structured replies come first");
        }
        if !self.is_ours(name) {
            return refuse(out, which, option_reply::ERR_UNKNOWN, "no such export");
        }
        let asked = |query: &&[u8]| *query == BASE_ALLOCATION.as_bytes() || (!setting && *query == b"base:");
        if queries.iter().any(asked) || (!setting && queries.is_empty()) {
            let id = if setting { ALLOCATION_ID } else { 0 };
            let context = [&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()].concat();
            reply(out, which, option_reply::META_CONTEXT, &context);
            self.agreed.allocation |= setting;
        }
        reply(out, which, option_reply::ACK, &[]);
    }

    fn is_ours(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.offer.name.as_bytes()
    }
}

/// The name in the data of `NBD_OPT_INFO` or `NBD_OPT_GO`; `None` when lengths do not fit.
fn go_name(data: &[u8]) -> Option<&[u8]> {
    let len = usize::try_from(u32_at(data, 0)?).ok().filter(|len| *len <= NAME_MOST)?;
    let name = data.get(4..4 + len)?;
    let requests = usize::from(u16_at(data, 4 + len)?);
    (data.len() == 4 + len + 2 + 2 * requests).then_some(name)
}

/// Name and queries of a meta context option; `None` when lengths do not fit.
fn queries(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut rest = data;
    let mut string = || {
        let len = usize::try_from(u32_at(rest, 0)?).ok().filter(|len| *len <= NAME_MOST)?;
        let text = rest.get(4..4 + len)?;
        rest = rest.get(4 + len..)?;
        Some(text)
    };
    let name = string()?;
    let count = u32_at(rest, 0)?;
    rest = rest.get(4..)?;
    let mut queries = Vec::new();
    for _ in 0..count {
        let len = usize::try_from(u32_at(rest, 0)?).ok().filter(|len| *len <= NAME_MOST)?;
        queries.push(rest.get(4..4 + len)?);
        rest = rest.get(4 + len..)?;
    }
    rest.is_empty().then_some((name, queries))
}

fn be_len(bytes: &[u8]) -> [u8; 4] {
    // Names are bounded.
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()
}

fn reply(out: &mut Vec<u8>, which: u32, kind: u32, data: &[u8]) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&which.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&be_len(data));
    out.extend_from_slice(data);
}

fn refuse(out: &mut Vec<u8>, which: u32, kind: u32, why: &str) {
    reply(out, which, kind, why.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn handshake() -> Handshake<'static> {
        Handshake::new(Offer { name: "disk0", bytes: 1 << 20 }, 3).unwrap()
    }

    fn string(text: &str) -> Vec<u8> {
        [&be_len(text.as_bytes()), text.as_bytes()].concat()
    }

    fn go(name: &str) -> Vec<u8> {
        [string(name), vec![0, 0]].concat()
    }

    fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
        let count = u32::try_from(queries.len()).unwrap().to_be_bytes().to_vec();
        [string(name), count, queries.iter().flat_map(|query| string(query)).collect()].concat()
    }

    /// Types of the replies in some bytes.
    fn kinds(mut bytes: &[u8]) -> Vec<u32> {
        let mut kinds = Vec::new();
        while !bytes.is_empty() {
            kinds.push(u32_at(bytes, 12).unwrap());
            bytes = &bytes[20 + u32_at(bytes, 16).unwrap() as usize..];
        }
        kinds
    }

    #[test]
    fn what_is_agreed_on_is_what_was_asked_for() {
        let mut handshake = handshake();
        let mut out = Vec::new();
        let early = contexts("disk0", &[BASE_ALLOCATION]);
        handshake.answer(option::SET_META_CONTEXT, &early, &mut out).unwrap();
        assert_eq!(kinds(&out), [option_reply::ERR_INVALID], "structured replies come first");
        out.clear();
        handshake.answer(option::STRUCTURED_REPLY, &[], &mut out).unwrap();
        handshake.answer(option::SET_META_CONTEXT, &early, &mut out).unwrap();
        assert_eq!(kinds(&out), [option_reply::ACK, option_reply::META_CONTEXT, option_reply::ACK]);
        let next = handshake.answer(option::GO, &go(""), &mut out).unwrap();
        assert_eq!(next, Next::Transmission(Agreement { structured: true, allocation: true }));
    }

    #[test]
    fn another_export_is_unknown_and_another_can_be_asked_for() {
        let mut handshake = handshake();
        let mut out = Vec::new();
        assert_eq!(handshake.answer(option::GO, &go("disk1"), &mut out).unwrap(), Next::Option);
        assert_eq!(kinds(&out), [option_reply::ERR_UNKNOWN]);
        assert!(matches!(handshake.answer(option::GO, &go("disk0"), &mut out).unwrap(), Next::Transmission(_)));
        assert!(handshake.answer(option::EXPORT_NAME, b"disk1", &mut out).is_err());
    }

    proptest! {
        #[test]
        fn no_option_brings_it_down(which in 0_u32..12, data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut out = Vec::new();
            let _ = handshake().answer(which, &data, &mut out);
            prop_assert!(out.len() < 1000);
        }
    }
}
