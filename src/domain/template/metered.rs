//! JSON values as the schema validator reads them, with a meter.
//!
//! A schema that refers to itself can make the validator look at one value
//! exponentially often, and the validator has no limit of its own. Here each
//! look uses up fuel; without fuel every value looks empty, so a check ends
//! soon and its answer is thrown away. Not here: what a schema says.

use std::{borrow::Cow, cell::Cell};

use jsonschema::{
    JsonType,
    json::{Json, Node, NodeIdentity, Object, SerdeJson},
};
use serde_json::{Map, Number, Value};

thread_local! {
    /// What the check on this thread may still look at. The validator hands
    /// nothing down to the values that it reads.
    static FUEL: Cell<u64> = const { Cell::new(0) };
}

/// Runs a check with so much fuel, and says whether that ran out.
pub(super) fn with_fuel<T>(fuel: u64, check: impl FnOnce() -> T) -> (T, bool) {
    FUEL.set(fuel);
    let result = check();
    (result, FUEL.get() == 0)
}

/// So many bytes of a string cost as much as one look: a pattern reads all
/// of it each time.
const STRING_BYTES_PER_LOOK: usize = 16;

/// Uses up fuel; false without any.
fn burn() -> bool {
    burn_for(0)
}

/// Uses up fuel for reading a string of so many bytes.
fn burn_for(bytes: usize) -> bool {
    let cost = u64::try_from(bytes / STRING_BYTES_PER_LOOK).unwrap_or(u64::MAX).saturating_add(1);
    let left = FUEL.get().saturating_sub(cost);
    FUEL.set(left);
    left > 0
}

/// The representation.
#[derive(Debug)]
pub(super) struct Metered;

impl Metered {
    /// A value for the validator.
    pub(super) fn node(value: &Value) -> MeteredValue<'_> {
        MeteredValue(value)
    }
}

/// A value whose looks are metered.
#[derive(Clone, Copy, Debug)]
pub(super) struct MeteredValue<'a>(&'a Value);

impl Json for Metered {
    type Node<'a> = MeteredValue<'a>;
    type PreparedKey = String;
    type StringBuffer = ();

    const KEYS_PER_LOOKUP: usize = SerdeJson::KEYS_PER_LOOKUP;
    const ACYCLIC: bool = true;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>((): &mut (), string: &str, f: impl FnOnce(MeteredValue<'_>) -> T) -> T {
        SerdeJson::with_string_node(&mut (), string, |value| f(MeteredValue(value)))
    }
}

impl<'a> Node<'a, Metered> for MeteredValue<'a> {
    type Object = Members<'a>;
    type Array = Elements<'a>;
    type Number = &'a Number;

    fn as_object(&self) -> Option<Members<'a>> {
        self.0.as_object().filter(|_| burn()).map(Members)
    }

    fn as_array(&self) -> Option<Elements<'a>> {
        self.0.as_array().filter(|_| burn()).map(|items| Elements(items))
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        self.0.as_str().filter(|text| burn_for(text.len())).map(Cow::Borrowed)
    }

    fn as_number(&self) -> Option<&'a Number> {
        self.0.as_number()
    }

    fn as_boolean(&self) -> Option<bool> {
        self.0.as_bool()
    }

    fn is_null(&self) -> bool {
        self.0.is_null()
    }

    fn json_type(&self) -> JsonType {
        burn();
        Node::<SerdeJson>::json_type(&self.0)
    }

    fn equals_value(&self, expected: &Value) -> bool {
        Node::<SerdeJson>::equals_value(&self.0, expected)
    }

    fn to_value(&self) -> Cow<'a, Value> {
        Cow::Borrowed(self.0)
    }

    fn identity(&self) -> Option<NodeIdentity> {
        Node::<SerdeJson>::identity(&self.0)
    }
}

/// The members of an object.
#[derive(Debug)]
pub(super) struct Members<'a>(&'a Map<String, Value>);

impl<'a> Object<'a, Metered> for Members<'a> {
    type Node = MeteredValue<'a>;
    type MemberName = &'a String;
    type MembersIter = MembersIter<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, key: &String) -> Option<MeteredValue<'a>> {
        self.0.get(key).map(MeteredValue)
    }

    fn members(&self) -> MembersIter<'a> {
        MembersIter(self.0.iter())
    }
}

/// Goes through the members of an object.
#[derive(Debug)]
pub(super) struct MembersIter<'a>(serde_json::map::Iter<'a>);

impl<'a> Iterator for MembersIter<'a> {
    type Item = (&'a String, MeteredValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if !burn() {
            return None;
        }
        self.0.next().map(|(name, value)| (name, MeteredValue(value)))
    }
}

/// The elements of an array.
#[derive(Debug)]
pub(super) struct Elements<'a>(&'a [Value]);

impl<'a> jsonschema::json::Array<'a, Metered> for Elements<'a> {
    type Node = MeteredValue<'a>;
    type ElementsIter = ElementsIter<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn elements(&self) -> ElementsIter<'a> {
        ElementsIter(self.0.iter())
    }
}

/// Goes through the elements of an array.
#[derive(Debug)]
pub(super) struct ElementsIter<'a>(std::slice::Iter<'a, Value>);

impl<'a> Iterator for ElementsIter<'a> {
    type Item = MeteredValue<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        if !burn() {
            return None;
        }
        self.0.next().map(MeteredValue)
    }
}
