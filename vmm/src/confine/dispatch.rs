//! Compiles rules for system calls into a filter that finds a call's rules by halving, not one by one. The kernel runs a
//! new filter once for every call there is, to remember which are always allowed (`seccomp_cache_prepare`), so a linear
//! filter of this size costs a machine's start a tenth of a millisecond. Called by [`super::syscalls`]; knows no call.

use seccompiler::{BpfProgram, SeccompAction, SeccompRule, sock_filter};
use std::collections::BTreeMap;

// The few instructions of classic BPF that are needed here, linux/bpf_common.h.
const LOAD_WORD: u16 = 0x20;
const JUMP_ALWAYS: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_GREATER: u16 = 0x25;
const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// `AUDIT_ARCH_X86_64`, linux/audit.h.
const X86_64: u32 = 0xc000_003e;

/// System calls in a row that are treated alike.
#[derive(Debug)]
struct Calls {
    first: u32,
    last: u32,
    /// None: always allowed. Else any of these must match.
    rules: Vec<SeccompRule>,
}

/// A filter that allows a call of `rules` when it has none or one of them matches, and does `otherwise` in every other
/// case: other calls, other architectures, the x32 ABI.
pub(super) fn compile(rules: BTreeMap<u32, Vec<SeccompRule>>, otherwise: &SeccompAction) -> BpfProgram {
    let otherwise = u32::from(otherwise.clone());
    let mut calls: Vec<Calls> = Vec::with_capacity(rules.len());
    for (number, rules) in rules {
        match calls.last_mut() {
            Some(row) if row.last + 1 == number && row.rules.is_empty() && rules.is_empty() => row.last = number,
            _ => calls.push(Calls { first: number, last: number, rules }),
        }
    }
    let mut program = vec![
        plain(LOAD_WORD, ARCHITECTURE),
        jump(JUMP_IF_EQUAL, X86_64, 1, 0),
        plain(RETURN, otherwise),
        plain(LOAD_WORD, NUMBER),
    ];
    program.extend(tree(&calls, otherwise));
    program
}

fn tree(calls: &[Calls], otherwise: u32) -> BpfProgram {
    match calls {
        [] => vec![plain(RETURN, otherwise)],
        [one] => leaf(one, otherwise),
        _ => {
            let (low, high) = calls.split_at(calls.len() / 2);
            let first_high = high[0].first;
            let low = tree(low, otherwise);
            let mut program = match u8::try_from(low.len()) {
                Ok(distance) => vec![jump(JUMP_IF_GREATER_OR_EQUAL, first_high, distance, 0)],
                // A conditional jump reaches 255 instructions.
                Err(_) => vec![
                    jump(JUMP_IF_GREATER_OR_EQUAL, first_high, 0, 1),
                    plain(JUMP_ALWAYS, u32::try_from(low.len()).unwrap_or(u32::MAX)),
                ],
            };
            program.extend(low);
            program.extend(tree(high, otherwise));
            program
        }
    }
}

fn leaf(calls: &Calls, otherwise: u32) -> BpfProgram {
    let allow = plain(RETURN, SeccompAction::Allow.into());
    let mut program = if calls.first == calls.last {
        vec![jump(JUMP_IF_EQUAL, calls.first, 1, 0), plain(RETURN, otherwise)]
    } else {
        vec![
            jump(JUMP_IF_GREATER_OR_EQUAL, calls.first, 0, 1),
            jump(JUMP_IF_GREATER, calls.last, 0, 1),
            plain(RETURN, otherwise),
        ]
    };
    if calls.rules.is_empty() {
        program.push(allow);
        return program;
    }
    for rule in &calls.rules {
        // Goes on behind itself when it matches, else behind the instruction after.
        program.extend(BpfProgram::from(rule.clone()));
        program.push(allow.clone());
    }
    program.push(plain(RETURN, otherwise));
    program
}

fn plain(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, TargetArch};

    /// What a filter says of a call, and after how many instructions.
    fn run(program: &[sock_filter], architecture: u32, number: u32, argument: u64) -> (u32, usize) {
        let mut data = [0_u8; 64];
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&architecture.to_ne_bytes());
        for offset in (16..64).step_by(8) {
            data[offset..offset + 8].copy_from_slice(&argument.to_ne_bytes());
        }
        let (mut at, mut a, mut steps) = (0, 0_u32, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            steps += 1;
            let either = |condition| usize::from(if condition { jt } else { jf });
            match code {
                LOAD_WORD => a = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap()),
                // BPF_ALU | BPF_AND | BPF_K, of masked comparisons.
                0x54 => a &= k,
                JUMP_ALWAYS => at += k as usize,
                JUMP_IF_EQUAL => at += either(a == k),
                JUMP_IF_GREATER => at += either(a > k),
                JUMP_IF_GREATER_OR_EQUAL => at += either(a >= k),
                RETURN => return (k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn rules(many: u32) -> BTreeMap<u32, Vec<SeccompRule>> {
        let equals = |value| {
            let condition = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).unwrap();
            SeccompRule::new(vec![condition]).unwrap()
        };
        let masked =
            SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(0xff00_0000_0004), 4).unwrap();
        let mut rules: BTreeMap<u32, Vec<SeccompRule>> =
            (0..many).filter(|n| n % 7 < 4).map(|n| (n, Vec::new())).collect();
        rules.insert(9, vec![equals(5), equals(6)]);
        rules.insert(16, vec![SeccompRule::new(vec![masked]).unwrap()]);
        rules.insert(many / 2, vec![equals(7), equals(8), equals(9)]);
        rules
    }

    #[test]
    fn it_says_what_a_linear_filter_says() {
        for many in [20, 60, 450, 900] {
            let kill = SeccompAction::KillProcess;
            let tree = compile(rules(many), &kill);
            let linear = rules(many).into_iter().map(|(number, rules)| (i64::from(number), rules)).collect();
            let linear: BpfProgram =
                SeccompFilter::new(linear, kill, SeccompAction::Allow, TargetArch::x86_64).unwrap().try_into().unwrap();
            let mut longest = 0;
            for number in (0..1000).chain([0x4000_0000, 0x4000_0009, u32::MAX]) {
                for argument in [0, 4, 5, 6, 7, 8, 9, 0xff00_0000_0004, 1 << 32 | 5] {
                    let (said, steps) = run(&tree, X86_64, number, argument);
                    assert_eq!(said, run(&linear, X86_64, number, argument).0, "call {number}, argument {argument:#x}");
                    assert_eq!(run(&tree, 0x4000_0003, number, argument).0, u32::from(SeccompAction::KillProcess));
                    longest = longest.max(steps);
                }
            }
            assert!(longest < 40, "{longest} instructions for one of {many} calls");
        }
    }

    #[test]
    fn nothing_is_allowed_by_no_rules() {
        let program = compile(BTreeMap::new(), &SeccompAction::KillProcess);
        assert_eq!(run(&program, X86_64, 0, 0).0, u32::from(SeccompAction::KillProcess));
    }
}
