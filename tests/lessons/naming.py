"""Which of diffusers' names belongs to which of ours: what the tests of several U-Nets share."""


def level_names(levels, layers):
    """Our prefixes of a U-Net → theirs. They keep residual blocks, attentions and resamplers of a level in three lists."""
    place = {"mid.0.res": "mid_block.resnets.0", "mid.0.attention": "mid_block.attentions.0", "mid.1.res": "mid_block.resnets.1"}
    i = j = 0
    for level in range(levels):
        if level:
            place[f"down.{i}"] = f"down_blocks.{level - 1}.downsamplers.0.conv"
            i += 1
        for n in range(layers):
            place[f"down.{i}.res"], place[f"down.{i}.attention"] = f"down_blocks.{level}.resnets.{n}", f"down_blocks.{level}.attentions.{n}"
            i += 1
        for n in range(layers + 1):
            place[f"up.{j}.res"], place[f"up.{j}.attention"] = f"up_blocks.{level}.resnets.{n}", f"up_blocks.{level}.attentions.{n}"
            j += 1
        if level < levels - 1:
            place[f"up.{j}"] = f"up_blocks.{level}.upsamplers.0.conv"
            j += 1
    return place
