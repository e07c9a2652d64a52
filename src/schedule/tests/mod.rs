mod ahead;
mod firing;
mod house;
mod rules;
mod turns;
