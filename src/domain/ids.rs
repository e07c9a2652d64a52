//! Identifiers, and how one finds its namespace: by bits of the id.
//!
//! A task's id is a UUID of version 7 whose random part holds the number of
//! its namespace, so that a look-up goes straight to the row under
//! `(namespace, task)` and no index over random keys exists. A step's id is
//! derived from its task's id and its number, so it needs no index either.
//! Ids are no secrets: authority never comes from knowing one.

use std::fmt;

use uuid::Uuid;

use super::Timestamp;

/// The number of a namespace in the store; keys begin with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceNo(pub u32);

/// A task's id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(Uuid);

const RAND_B_BITS: u32 = 62;
const NAMESPACE_SHIFT: u32 = 30;
const TASK_RANDOM_MASK: u128 = (1 << NAMESPACE_SHIFT) - 1;

impl TaskId {
    /// A new id: 48 bits of milliseconds, 12 bits of their fraction, 32 bits
    /// of namespace and the low 30 bits of `entropy`.
    #[must_use]
    pub fn compose(now: Timestamp, namespace: NamespaceNo, entropy: u32) -> Self {
        let micros = u128::try_from(now.micros()).unwrap_or(0);
        let (millis, fraction) = (micros / 1_000, (micros % 1_000) * 4);
        let rand_b =
            u128::from(namespace.0) << NAMESPACE_SHIFT | u128::from(entropy) & TASK_RANDOM_MASK;
        Self(v7(millis, fraction, rand_b))
    }

    /// The namespace's number within the id. It says where to look, not that
    /// the task exists.
    #[must_use]
    pub fn namespace_no(self) -> NamespaceNo {
        let bits = self.0.as_u128() >> NAMESPACE_SHIFT & u128::from(u32::MAX);
        NamespaceNo(u32::try_from(bits).unwrap_or(0))
    }

    /// The id of one of the task's steps.
    #[must_use]
    pub fn step(self, step: StepNo) -> StepId {
        let id = self.0.as_u128();
        let random = id & TASK_RANDOM_MASK;
        let namespace = id >> NAMESPACE_SHIFT & u128::from(u32::MAX);
        // 30 bits of the task's randomness, 16 of the namespace, 16 of step.
        let rand_b = random << 32 | (namespace & 0xffff) << 16 | u128::from(step.0);
        StepId(v7(id >> 80, id >> 64 & 0xfff, rand_b))
    }

    /// The number of a step of this task by its id; none for another task's.
    #[must_use]
    pub fn step_no(self, step: StepId) -> Option<StepNo> {
        let no = StepNo(u16::try_from(step.0.as_u128() & 0xffff).ok()?);
        (self.step(no) == step).then_some(no)
    }

    /// The sixteen bytes that sort by time.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From its sixteen bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// Reads the text form; none when it is not a UUID.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        parse_uuid(text).map(Self)
    }
}

/// A step's id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(Uuid);

impl StepId {
    /// Reads the text form; none when it is not a UUID.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        parse_uuid(text).map(Self)
    }
}

fn v7(millis: u128, fraction: u128, rand_b: u128) -> Uuid {
    let rand_b_mask = (1_u128 << RAND_B_BITS) - 1;
    Uuid::from_u128(
        (millis & 0xffff_ffff_ffff) << 80
            | 0x7 << 76
            | (fraction & 0xfff) << 64
            | 0b10 << RAND_B_BITS
            | rand_b & rand_b_mask,
    )
}

/// Only the hyphenated form of 36 characters, so that an id has one spelling
/// but for its case.
fn parse_uuid(text: &str) -> Option<Uuid> {
    (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

/// A step's number in its task, given when the step is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepNo(pub u16);

/// A lease's id: where the step is, the server's boot epoch, a counter and
/// something random. It proves the lease, and no id is ever given twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId {
    /// The task.
    pub task: TaskId,
    /// The step.
    pub step: StepNo,
    /// Raised durably at each start of a server.
    pub epoch: u32,
    /// Counts within an epoch.
    pub counter: u64,
    /// What cannot be guessed.
    pub random: u64,
}

/// How many bytes a lease's id has.
pub const LEASE_ID_BYTES: usize = 38;

impl LeaseId {
    /// The bytes that the text form spells.
    #[must_use]
    pub fn to_bytes(self) -> [u8; LEASE_ID_BYTES] {
        let mut bytes = [0; LEASE_ID_BYTES];
        let parts = self
            .task
            .as_bytes()
            .iter()
            .copied()
            .chain(self.step.0.to_be_bytes())
            .chain(self.epoch.to_be_bytes())
            .chain(self.counter.to_be_bytes())
            .chain(self.random.to_be_bytes());
        for (slot, byte) in bytes.iter_mut().zip(parts) {
            *slot = byte;
        }
        bytes
    }

    /// From its bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; LEASE_ID_BYTES]) -> Option<Self> {
        let (task, rest) = bytes.split_first_chunk::<16>()?;
        let (step, rest) = rest.split_first_chunk::<2>()?;
        let (epoch, rest) = rest.split_first_chunk::<4>()?;
        let (counter, rest) = rest.split_first_chunk::<8>()?;
        let (random, _) = rest.split_first_chunk::<8>()?;
        Some(Self {
            task: TaskId::from_bytes(*task),
            step: StepNo(u16::from_be_bytes(*step)),
            epoch: u32::from_be_bytes(*epoch),
            counter: u64::from_be_bytes(*counter),
            random: u64::from_be_bytes(*random),
        })
    }

    /// Reads the text form, 76 lower-case hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != LEASE_ID_BYTES * 2 {
            return None;
        }
        let mut bytes = [0; LEASE_ID_BYTES];
        for (slot, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let &[high, low] = pair else { return None };
            *slot = hex_digit(high)? << 4 | hex_digit(low)?;
        }
        Self::from_bytes(&bytes)
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A lease's id proves the lease, so `Debug` shows only where it points.
impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseId({}/{})", self.task, self.step.0)
    }
}

/// The id of a request and of the decision about it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(Uuid);

impl RequestId {
    /// From sixteen random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// Reads it as it is shown, and in no other way.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let id = Uuid::parse_str(text).ok().map(Self)?;
        (id.to_string() == text).then_some(id)
    }
}

macro_rules! shown_as_uuid {
    ($($id:ident)*) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

shown_as_uuid!(TaskId StepId RequestId);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_task_id_finds_its_namespace_and_steps(
            micros in 0_i64..1 << 56, namespace: u32, entropy: u32, step: u16, other: u16,
        ) {
            let task = TaskId::compose(Timestamp::from_micros(micros), NamespaceNo(namespace), entropy);
            prop_assert_eq!(task.namespace_no(), NamespaceNo(namespace));
            prop_assert_eq!(TaskId::parse(&task.to_string()), Some(task));
            let id = task.step(StepNo(step));
            prop_assert_eq!(task.step_no(id), Some(StepNo(step)));
            prop_assert_eq!(id == task.step(StepNo(other)), step == other);
            let stranger = TaskId::compose(
                Timestamp::from_micros(micros), NamespaceNo(namespace), entropy ^ 1);
            prop_assert_eq!(stranger.step_no(id), None);
            prop_assert_eq!(Uuid::parse_str(&id.to_string()).ok().and_then(|id| id.get_version_num().into()), Some(7));
        }

        #[test]
        fn a_lease_id_reads_back(micros in 0_i64..1 << 56, step: u16, epoch: u32, counter: u64, random: u64) {
            let task = TaskId::compose(Timestamp::from_micros(micros), NamespaceNo(7), 9);
            let lease = LeaseId { task, step: StepNo(step), epoch, counter, random };
            prop_assert_eq!(LeaseId::parse(&lease.to_string()), Some(lease));
            let (shown, secret) = (format!("{lease:?}"), format!("{random:016x}"));
            prop_assert!(!shown.contains(&secret));
        }
    }
}
