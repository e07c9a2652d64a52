//! Whole flows over the real store, with a clock that the tests hold.

mod house;

mod flows;
mod lists;
mod waiting;
mod watching;
