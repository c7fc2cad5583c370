"""How several models become one: a file for each method.

Tensor by tensor, from the weights alone (base.TensorMethod):

    linear            average, weighted           slerp            along the arc
    task_arithmetic   base + what was learned     ties             trim, elect a sign, average
    dare              drop and rescale            delta_guided     by how far each model moved each weight

From rows as well; what they measure makes one of the above, or their own function of a tensor:

    fisher            what each model's loss depends on       regmean     what each model's linear layers read
    greedy_soup       models that make the average better     self_positioning   the place on the arcs, by gradient

Names of methods and parameters are those of mergekit where it has them.
"""
