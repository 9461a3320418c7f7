//! A newtype contains only valid values, whether it was constructed, decoded from postcard, or read
//! from JSON.

use proptest::prelude::*;
use sandboxvm_protocol::{agent::limits::*, agent::*, ids::*, machine::*, network::*};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// Asserts that `raw` becomes a `T` exactly if `valid`, in all three ways.
fn check<T, R>(raw: &R, valid: bool)
where
    R: Clone + Debug + Serialize,
    T: TryFrom<R> + Serialize + DeserializeOwned + Debug,
{
    assert_eq!(T::try_from(raw.clone()).is_ok(), valid, "constructed from {raw:?}");
    let bytes = postcard::to_stdvec(raw).expect("encodes");
    assert_eq!(postcard::from_bytes::<T>(&bytes).is_ok(), valid, "postcard of {raw:?}");
    let text = serde_json::to_string(raw).expect("encodes");
    assert_eq!(serde_json::from_str::<T>(&text).is_ok(), valid, "JSON {text}");
    if let Ok(value) = T::try_from(raw.clone()) {
        assert_eq!(postcard::to_stdvec(&value).expect("encodes"), bytes, "the newtype changes the encoding");
        assert_eq!(serde_json::to_string(&value).expect("encodes"), text, "the newtype changes the encoding");
    }
}

#[test]
fn sandbox_ids() {
    for valid in ["abcdefgh", "00000000", "a2345678", &"z".repeat(32)] {
        check::<SandboxId, String>(&valid.to_owned(), true);
    }
    let invalid = [
        "",
        "abcdefg",
        &"z".repeat(33),
        "Abcdefgh",
        "abcd-fgh",
        "abcdefg\n",
        "abcdefgh\n",
        "abcdefgh\0",
        "../../etc",
        "abcdefg/",
        "abcdefgé",
        "abcdefg ",
    ];
    for text in invalid {
        check::<SandboxId, String>(&text.to_owned(), false);
    }
}

#[test]
fn sandbox_names() {
    for valid in ["a", "0", "demo", "demo-1", "a-", &"n".repeat(63)] {
        check::<SandboxName, String>(&valid.to_owned(), true);
    }
    let invalid = ["", "-a", "A", "a_b", "a.b", "a/b", "..", "a b", "a\n", "a\nb", "a\0b", "\u{e4}", &"n".repeat(64)];
    for text in invalid {
        check::<SandboxName, String>(&text.to_owned(), false);
    }
}

#[test]
fn vcpu_counts() {
    for count in 1..=8 {
        check::<VcpuCount, u32>(&count, true);
    }
    for count in [0, 9, 255, 256, 257, 264, u32::MAX] {
        check::<VcpuCount, u32>(&count, false);
    }
}

#[test]
fn memory_sizes() {
    for bytes in [64 * MIB, 65 * MIB, 256 * MIB, 4096 * MIB, 64 * 1024 * MIB] {
        check::<MemorySize, u64>(&bytes, true);
    }
    for bytes in [0, 1, 63 * MIB, 64 * MIB - 1, 64 * MIB + 1, 64 * 1024 * MIB + 1, (64 * 1024 + 1) * MIB, u64::MAX] {
        check::<MemorySize, u64>(&bytes, false);
    }
}

#[test]
fn guest_cids() {
    for cid in [3, 4, u32::MAX - 1] {
        check::<GuestCid, u32>(&cid, true);
    }
    for cid in [0, 1, 2, u32::MAX] {
        check::<GuestCid, u32>(&cid, false);
    }
}

#[test]
fn hardware_addresses() {
    for (bytes, is_address) in [
        ([2, 0, 0, 0, 0, 1], true),
        ([0, 0, 0, 0, 0, 1], true),
        ([0; 6], false),
        ([1, 0, 0, 0, 0, 0], false),
        ([0xff; 6], false),
    ] {
        check::<MacAddress, [u8; 6]>(&bytes, is_address);
    }
    for address in [MacAddress::GUEST, MacAddress::GATEWAY] {
        check::<MacAddress, [u8; 6]>(&address.bytes(), true);
    }
    assert_eq!(MacAddress::GUEST.to_string(), "02:73:62:78:00:02");
}

#[test]
fn mtus() {
    for (bytes, is_mtu) in [(0, false), (1279, false), (1280, true), (65520, true), (65521, false), (u16::MAX, false)] {
        check::<Mtu, u16>(&bytes, is_mtu);
    }
}

#[test]
fn signal_numbers() {
    for number in 0..=u8::MAX {
        check::<SignalNumber, u8>(&number, (1..=64).contains(&number));
    }
}

#[test]
fn limits_of_processes() {
    for (count, is_count) in [(0, false), (1, true), (30_000, true), (30_001, false), (u32::MAX, false)] {
        check::<ProcessCount, u32>(&count, is_count);
    }
    for (count, is_count) in [(0, false), (7, false), (8, true), (1 << 20, true), ((1 << 20) + 1, false)] {
        check::<FileCount, u32>(&count, is_count);
    }
    let default = |mib: u64| ProcessCount::default_for(MemorySize::try_from(mib * MIB).expect("a memory size")).get();
    assert_eq!([64, 128, 256, 65_536].map(default), [256, 512, 1024, 4096]);
}

#[test]
fn c_texts() {
    for valid in [vec![], b"ls".to_vec(), vec![0xff, 0xfe], vec![b'x'; MAX_ARGUMENT]] {
        check::<CText, Vec<u8>>(&valid, true);
    }
    for invalid in [vec![0], b"a\0b".to_vec(), b"ab\0".to_vec(), vec![b'x'; MAX_ARGUMENT + 1]] {
        check::<CText, Vec<u8>>(&invalid, false);
    }
}

#[test]
fn ids_from_entropy_are_valid_and_differ_in_every_bit() {
    let zero = SandboxId::from_entropy([0; 10]);
    for bit in 0..80 {
        let mut entropy = [0u8; 10];
        entropy[bit / 8] = 1 << (bit % 8);
        let id = SandboxId::from_entropy(entropy);
        assert_ne!(id, zero, "bit {bit}");
        assert_eq!(id.as_str().len(), 16);
    }
}

proptest! {
    #[test]
    fn ids_from_entropy_are_valid(entropy in any::<[u8; 10]>()) {
        let id = SandboxId::from_entropy(entropy);
        prop_assert_eq!(SandboxId::try_from(id.as_str().to_owned()), Ok(id));
    }

    #[test]
    fn arbitrary_strings_obey_the_grammar(text in any::<String>()) {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let id = (8..=32).contains(&text.len()) && text.bytes().all(plain);
        check::<SandboxId, String>(&text, id);
        let name = (1..=63).contains(&text.len())
            && plain(text.as_bytes()[0])
            && text.bytes().all(|b| plain(b) || b == b'-');
        check::<SandboxName, String>(&text, name);
    }
}
